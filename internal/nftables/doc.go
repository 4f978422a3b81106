// Package nftables reads, writes and watches one table of nf_tables, as nft(8) does, over netlink
// (include/uapi/linux/netfilter/nf_tables.h; net/netfilter/nf_tables_api.c).
//
//	conn, err := nftables.Open()
//	…
//	id := nftables.TableID{Family: nftables.INet, Name: "example"}
//	table, generation, err := conn.Read(ctx, id)
//	…
//	generation, err = conn.Commit(ctx, id, []nftables.Op{
//		nftables.AddTable{},
//		nftables.AddChain{Chain: nftables.Chain{Name: "fence"}},
//	}, generation)
//
// Values say what stands in a table or should: they are plain data, and expressions, elements and
// verdicts can be compared with ==. A [Conn] is a socket to the kernel, a [Watcher] one that hears of
// every change.
//
// The package knows few expressions. What it does not know it reads as [Unknown], so that nobody
// takes a foreign rule for an own one.
//
// google/nftables v0.3.0 sends the direction of `ct` wrongly and fails on `ct daddr` in tables of
// inet.
package nftables
