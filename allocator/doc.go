// Package allocator leases routing tables: it maps (family, interface, on-link
// prefix) to one table number, and keeps that mapping in sqlite so that a link
// gets the same table again after down/up, a restart and a reboot.
//
// There are two kinds of holders of a number, in one table of the database, so
// that they can never share one. A link is asked for by this program itself
// (Acquire, Release). A client is another program, or anything that it leases a
// table for (Serve): its lease has an owner and expires.
//
// # What is promised
//
//  1. No number is held by two keys. The database guarantees it (the number is
//     the primary key of its only table), and memory never disagrees with it in
//     a way that could break it; see below.
//  2. A number is durable before Acquire returns it, so that no kernel object
//     ever stands in a table that a crash could make us forget. With Options.Anyhow
//     a link goes before that: where the disk takes nothing, it gets an unused number
//     in memory, which Options.Standing brings back after a crash.
//  3. A number that was released goes to another key only when no unused one is
//     left in the range, and then the one that was released longest ago.
//  4. A number that anything uses in the kernel, in rt_tables or in a profile is
//     never handed out: the caller knows those and answers the InUse callback.
//     A key that already has a lease keeps its number whatever the callback says,
//     until Move gives it another one.
//  5. A link that has a lease, held or released, is answered from memory: no disk,
//     no wait for a commit in progress. A link that flaps costs no fsync, and a
//     database that is full, locked, read-only or gone costs no link its table.
//  6. What a client is told is durable: its lease, when that expires, and that it
//     was released. All demands that wait share one commit. Only what changes
//     nothing, as a renewal within the same second, costs no disk.
//  7. A client's lease is live until it is released or expires, also across a
//     restart and a crash, and nobody but its owner and root can change it. After
//     a reboot none is live, for the clock of the leases began anew and the
//     clients are gone. The number stays with its key as that of a link does.
//  8. A link that gets a table for the first time takes over the one that a client
//     last had for an address in the link's prefix, if that lease is not live.
//     InUse is not asked: what stands there is of the same address. So a host
//     keeps its numbers when it changes from leases of clients to links.
//  9. The last number of the range is kept for failover: no link and no client gets
//     it, and a lease of version 1 that has it is dropped when the database is opened.
//  10. When only 16 numbers are free, or a quarter of a small range, an interface that
//     holds one gets no further one. So one with many networks or clients leaves
//     something to those that have none. A key that has a lease, held or released,
//     gets its number whatever is left.
//
// # Why lazy bookkeeping cannot cause a double use
//
// Only the pair (number, key) must be right on disk; it is written before it is
// used. Whether a link is held, and since when it is not, is written lazily
// (Flush, Close), so after a crash the disk may say "released" of a lease that is
// in use. That can only mislead the choice of a number to recycle, and a number
// is recycled only if both are true:
//
//   - no key holds it in memory: whoever acquired since Open is safe, whatever
//     the disk says, and Acquire serves the known keys of a batch before it
//     recycles for the unknown ones;
//   - InUse denies it: whatever stood before the crash and has not been acquired
//     again since is still in the kernel, so it is safe for as long as the
//     caller's callback reports every table that holds a rule or route, OURS
//     INCLUDED.
//
// So the caller has two duties: InUse must answer for the kernel as it is (never an empty
// mirror), and a number is released only after its objects are gone from the kernel, or
// while InUse still reports them.
//
// Recycling replaces the old row by the new one in one transaction, so there is
// no moment at which the disk holds both or neither. At Open the lease of every
// link, and of every client whose lease is over, counts as released: at the time the disk knows, or, if the disk says it was held, now
// and so behind all others. The order of release is a counter and not a time: a
// board without a battery-backed clock boots in 1970.
//
// # When the file is in trouble
//
// While the process lives, memory is the truth. After a failed write the
// connection is dropped, and the next new lease opens the file again and brings
// it in line first: what the file lacks or says otherwise is written to it (it may
// have been deleted, or replaced by a backup), leases only the file has are taken
// over as at Open unless they contradict memory. So a failure heals by itself once
// its cause is gone. A client whose demand could not be written gets an error and
// keeps what it had.
package allocator
