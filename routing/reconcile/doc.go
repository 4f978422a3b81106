// Package reconcile keeps the kernel equal to the plan.
//
// It takes facts from two sides, the owners of the links (NetworkManager) and
// the mirror of the kernel, hands them to the planner of package routing, and
// applies what differs:
//
//	event -> mirror and claims -> Planner.Set -> Diff -> Apply -> mirror sees it
//
// A pass runs as soon as something happened; what happens meanwhile is taken up
// by the next one. A pass costs what changed, not what the host holds: links
// that did not change are not planned again, and only touched objects are
// compared.
//
// Deletions need knowledge. What a link that is known here wanted and wants no
// more is deleted at once; what merely nobody asks for is deleted when the
// owners' knowledge is complete.
package reconcile
