// Package answering keeps the nftables table that marks packets with the link on which they are to
// be answered, and tells the loop which rungs that needs.
//
// The loop and the keeper are two reconcilers that run side by side, because a transaction of
// nf_tables waits for all CPUs and no pass may wait for it. Their order is an exchange of values:
//
//	keeper: answers are wanted ──────────▶ loop: rungs 9099-9101, with a number for each table
//	loop: these rungs stand (Snapshot) ──▶ keeper: packets are marked with these numbers
//	keeper: packets are marked (Diverted) ▶ loop: as long as they are, a number without a table
//	                                          is refused
//
// So a packet that carries a number always finds its link, or an end. What is to go, goes the
// other way round: the keeper stops to mark packets first.
package answering
