// Package preview writes changes of the routing as commands: ip(8) and nft(8) for sh(1). It is pure: who
// calls it reads the host. The commands do what routing/kernel and internal/nftables do, in their order,
// and name the same attributes.
//
// Names of interfaces may hold any bytes but '/', ':' and white space. In commands they are quoted for
// a POSIX shell (dash has no $'...'), and no command holds a byte that does not print: a terminal may
// show it, and JSON may carry it, without two names that look the same.
package preview
