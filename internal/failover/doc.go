// Package failover watches the uplinks: it asks the prober, gives what comes back to the
// machines of package health, and tells the reconcile loop which uplinks are dead.
package failover
