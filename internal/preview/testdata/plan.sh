# multihomed would make 23 changes, as far as could be read. Something may be missing.
# Not read: leases: no \x1b permission
# Not shown: the DNS servers in /run/dnsmasq/servers
set -e

# the configuration names another group of uplinks
ip -4 rule del pref 9020 from 192.0.2.7 lookup 254 suppress_prefixlength 7 suppress_ifgroup 28008 protocol 150
ip link set dev wan0 group 77
ip -4 rule add pref 9020 from 192.0.2.7 lookup 254 suppress_prefixlength 7 suppress_ifgroup 77 protocol 150

# before the rules change: no packet is marked for a rule that goes, and no address that moves is dropped
nft -f - <<'END'
delete element inet multihomed answers4 { 192.0.2.9 }
END

# a;$(id)`\\'"\x1b\xff: the group tells uplinks from other links (uplink-group)
ip link set dev "a;\$(id)\`\\'\"$(printf '\033\377')" group 77

# wan0, profile Büro \u202e: the network on the link (on-link)
ip -4 route append 192.0.2.0/24 dev wan0 table 10000 proto 150 scope 253 metric 1073741824

# wan0, profile Büro \u202e: main throws the destination: no table of ours answers instead (thrown-by-main)
ip -4 route append throw 198.51.100.0/24 table 10000 proto 150 scope 0 metric 1073741824

# wan0, profile Büro \u202e: main has it, and it belongs to the network (copied)
ip -4 route append default via 192.0.2.1 dev wan0 table 10000 proto 150 scope 0 metric 1073741824 mtu 1400
ip -4 route del default via 192.0.2.1 dev wan0 table 10000 proto 150 scope 0 metric 1073741824
ip -6 route del default via fe80::1 dev wan0 table 10000 proto 150 metric 1073741824
ip -6 route append default via fe80::1 dev wan0 table 10000 proto 150 metric 1073741824 pref high

# unbound traffic follows an uplink that works (failover)
ip -6 route replace default table 10999 proto 150 metric 1073741824 nexthop via fe80::1 dev wan0 weight 2 nexthop via fe80::2 dev "a;\$(id)\`\\'\"$(printf '\033\377')" weight 1

# rules say it for what this host sends, where "iif lo" has another meaning
ip link property add dev lo altname multihomed-lo

# wan0, profile Büro \u202e: once more, for packets that were lifted over the ladder (again)
ip -4 rule add pref 20000 from all iif multihomed-lo lookup 10000 protocol 150

# wan0, profile Büro \u202e: an application, a container or a network is bound to the link (binding)
# Note: add rule 9050: from 2001:db8::/64 lookup 10001 (also packets without a source): ip has no word for FIB_RULE_FIND_SADDR, so the rule does not select packets that have no source yet, as multihomed's does
ip -6 rule add pref 9050 from 2001:db8::/64 lookup 10001 protocol 150

# wan0, profile Büro \u202e: sockets bound to the device use its table (device)
ip -4 rule add pref 9500 from all oif wan0 lookup 10000 protocol 150

# a;$(id)`\\'"\x1b\xff: sockets bound to the device use its table (device)
ip -4 rule add pref 9500 from all oif "a;\$(id)\`\\'\"$(printf '\033\377')" lookup 10002 protocol 150

# wan0, profile Büro \u202e: packets from the address leave by the link (source)
ip -4 rule add pref 10000 from 192.0.2.7 lookup 10000 suppress_ifgroup 2147483646 protocol 150
ip -4 rule del pref 10000 from 192.0.2.7 lookup 10000 protocol 150
ip -4 rule add pref 10000 from 192.0.2.7 lookup 10000 protocol 150
ip -4 rule del pref 10000 from 192.0.2.7 lookup 10000 suppress_ifgroup 2147483646 protocol 150

# nothing needs it any more
ip -4 rule del pref 10500 from 192.0.2.7 unreachable protocol 150
ip -4 route del 203.0.113.0/24 dev wan0 table 10000 proto 150 scope 253 metric 1073741824
ip link set dev lan0 group 0

# the table is one of an earlier configuration
ip -4 route del 203.0.113.0/24 dev wan0 table 9000 proto 150 scope 253 metric 1073741824

# forwarded packets are answered on the link that was asked, and strays are dropped
nft -f - <<END
add table inet multihomed
add set inet multihomed pair6 { type ipv6_addr . ifname; }
add map inet multihomed answers4 { type ipv4_addr : verdict; }
add chain inet multihomed answers { type filter hook prerouting priority -145; policy accept; }
add chain inet multihomed link1
add rule inet multihomed answers iifname "b$(printf '\033')\$\\*" accept comment "multihomed loopback: packets of this host to itself are not routed again"
insert rule inet multihomed link1 handle 7 meta mark set meta mark and 0x00ffffff or 0x01000000 comment "multihomed set-mark: the number of a routing table, for rule 9100"
add element inet multihomed pair6 { 2001:db8::7 . "wan0" }
END

# forwarded packets are answered on the link that was asked, and strays are dropped
# Note: change nft table nft add element pair6 { 2001:db8::8 . "a;$(id)`\\\\'\\"\\x1b\\xff" }: no command: nft has no way to write this name of an interface

# the nft table needs this no more
nft -f - <<'END'
delete rule inet multihomed link1 handle 9
delete map inet multihomed answers6
delete chain inet multihomed strays
END
