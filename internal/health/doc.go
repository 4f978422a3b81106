// Package health judges whether a link works in one address family. A [Machine] is pure: it
// sends nothing, starts no goroutine and reads no clock. It is told what was sent and what
// came back, and says when the next probe is due and what it makes of the link.
//
// Moments are readings of CLOCK_MONOTONIC (clock_gettime(2)) as a [time.Duration]: daemon and
// prober share that clock, and no administrator can set it.
package health
