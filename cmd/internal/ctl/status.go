package ctl

import "multihomed/internal/status"

type (
	Status    = status.Status
	Daemon    = status.Daemon
	Manager   = status.Manager
	Count     = status.Count
	Range     = status.Range
	Link      = status.Link
	Network   = status.Network
	Address   = status.Address
	Gateway   = status.Gateway
	Object    = status.Object
	Other     = status.Other
	OtherRule = status.OtherRule
	Problem   = status.Problem
	Unbound   = status.Unbound
)
