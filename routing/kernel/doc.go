// Package kernel talks rtnetlink(7): it has a mirror of what the kernel holds, and a writer
// that changes it.
//
// A [Mirror] is filled by dumps once and kept by one subscription socket from
// then on. The kernel does not announce everything it does (an IPv4 route that
// is flushed because its link went down goes without a word), so the mirror
// infers what must have happened from what it was told; infer.go says from what
// and cites the kernel. Where the answer depends on something the mirror does
// not keep, it asks: one dump, filtered by the kernel, of one interface.
//
// A [Writer] sends many requests in one message and matches the answers.
//
// The mirror answers the questions of [multihomed/routing.Kernel]; nothing here
// decides anything.
package kernel
