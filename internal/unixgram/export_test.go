package unixgram

// IsAbstract reports whether an address is no path.
func (a Address) IsAbstract() bool { return a.isAbstract() }
