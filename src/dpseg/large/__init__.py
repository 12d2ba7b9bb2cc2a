"""Large pictures: read by windows, segmented in overlapping tiles, the labels written by windows.

Read `grid` (where tiles lie), `blend` (how they are put together), `windows` and `tiff` (how a picture is read),
`strips` (what is kept on disk meanwhile), `label_tiff` (the label map), and `segment`, which does it all.
"""
