# multihomed would change nothing of what could be read.
# Not read: all links
