// Package cgroups tests internal/cgroups where a real systemd makes the cgroups, with the programs of internal/cgroupbpf.
package cgroups
