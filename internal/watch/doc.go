// Package watch makes events of what changes on a host, with who did it and why: of announcements of
// the kernel ([Recorder.Take]) and of the difference between two status documents
// ([Recorder.Document]). [Frame] draws them. It reads nothing itself; package follow does.
package watch
