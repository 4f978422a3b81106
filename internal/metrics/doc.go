// Package metrics turns a status into the text that Prometheus reads. It is pure: [Of] makes
// families of metrics, [Encode] writes them in one of two formats.
//
// Names end in their unit, which is seconds or a ratio from 0 to 1, and every name begins with
// "multihomed_". The label device is the name of an interface, as in the metrics of
// node_exporter, written as in the status (see package escape); family is "ipv4" or "ipv6".
package metrics
