package binding

// LedUsers is ledUsers.
var LedUsers = ledUsers //nolint:gochecknoglobals // a function for tests
