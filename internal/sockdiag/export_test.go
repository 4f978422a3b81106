package sockdiag

// Decode reads one message of a dump.
func Decode(b []byte) (s Socket, err error) {
	err = s.decode(b)
	return s, err
}

// Unsupported is what a dump's error becomes.
var Unsupported = unsupported
