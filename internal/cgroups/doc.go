// Package cgroups finds the cgroups (cgroup v2, Documentation/admin-guide/cgroup-v2.rst) of systemd's units and slices, and
// has each one bound to a link as soon as it exists.
//
// It asks nobody where a unit is: systemd gives cgroups the names of units, and puts them into directories of slices. A
// [Selector] says which directories may hold it, and a [Follower] watches these alone (inotify(7); kernfs sends events for mkdir(2) and
// rmdir(2), on whatever mount). So a unit that is started is told within microseconds, with an open directory: its inode number is
// the cgroup's identity, which the kernel gives no second time, so that a cgroup made anew is another one.
//
// A [Keeper] calls a function for each cgroup that a binding selects, tries again while that fails, and knows
// how long a cgroup existed unbound and what waits.
//
// Ordinary users own directories, too: those that were delegated to them. What they make costs few watches, and at most a tenth of a
// processor.
package cgroups
