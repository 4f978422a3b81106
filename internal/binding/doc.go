// Package binding puts together what is bound to links: the entries of the configuration, those of
// `multihomectl bind` (which are in a file of the state directory, or of the runtime directory for
// those that end with the boot), and the marks of sockets that are bound by their control group.
//
// [Resolve] is the pure part: entries and what the host knows of their names in, bindings for the
// planner and their states out. A [Keeper] reads the files and keeps the numbers of marks.
//
// A mark has a number for each link, and a number is never given to another link before the
// next boot: a socket keeps its mark for as long as it lives.
package binding
