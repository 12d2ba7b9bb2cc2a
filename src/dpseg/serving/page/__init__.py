"""The web page: a photo, names and reference pictures in, an overlay out; mounted on the API's application."""
