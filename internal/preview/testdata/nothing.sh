# multihomed would change nothing.
