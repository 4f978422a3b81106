package watch

// Columns is for tests of widths.
var Columns = columns
