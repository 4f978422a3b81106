// Package nm learns from NetworkManager which devices are links, and when something about
// them changes. queue.go takes the signals of the bus in, session.go handles them, objects.go
// has the tree of objects, and watcher.go is what callers see.
//
// What addresses and routes exist is not its business: NetworkManager's view of
// them is a copy of the kernel's, without source, scope, MTU or multipath, cut
// at 100 routes and late by up to a third of a second in newer releases. The
// kernel says it itself (package routing/kernel). From NetworkManager come the
// device's type, its state, whether NetworkManager only watches the device (external), and
// what the profile that is applied to it asks for.
//
// A [Watcher] follows NetworkManager for as long as it runs. It subscribes
// before it reads, applies every signal and every reply in the order in which
// the bus sent them, and never waits for NetworkManager while signals come in.
// What it knows it keeps while NetworkManager or the bus is away: a [Snapshot]
// then says Running false, and its devices are as they were last seen.
//
// [Policy.Classify] is pure and says whether a [Device] is a link.
//
// Everything read from D-Bus is somebody else's data. A value that is missing
// or of another type than documented leaves the previous one in place and
// becomes one of the device's Problems.
package nm
