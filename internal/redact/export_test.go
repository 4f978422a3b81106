package redact

// NewWith is New with a key that does not change.
var NewWith = newWith
