"""Millions of pictures: listed, cut in numbered blocks, segmented block by block, written as Parquet or PNG; resumable.

Read `sources` (which pictures there are), `pictures` (how one is read), `store` (where results go), `rows` (what is
written), `manifest` (what a run is, and what of it is finished), `work` (one block), and `ray_engine` (many workers).
"""
