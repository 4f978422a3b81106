// Package doctor provokes what `multihomectl doctor` finds, on a real kernel with a real
// NetworkManager, and runs what it prints. Healthy hosts have no findings.
package doctor
