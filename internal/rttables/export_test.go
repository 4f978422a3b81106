package rttables

import "multihomed/routing"

// For tests of the parts that Load and Write use.
var (
	LoadFrom = loadFrom
	Generate = generate
)

// Tables returns all tables that have a name.
func (n Names) Tables() map[routing.TableID]Name { return n.byTable }
