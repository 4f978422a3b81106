# multihomed would change nothing, as far as could be read. Something may be missing.
# Not read: all links
