"""What the tests share: tiny models, pictures, labelled sets, served apps, and how a mistake must look."""
