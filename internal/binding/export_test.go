package binding

// LedUsers is ledUsers.
var LedUsers = ledUsers
