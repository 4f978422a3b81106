// Package explain says in words how the kernel routes a packet and why: which rule took it,
// which came before and had no answer, which route of which table it follows, what the kernel
// itself answers, and whose rules these are. It is for anybody's rules on any Linux host.
//
// It is pure. [Facts] go in; a [Document] comes out, which is the JSON of `multihomectl
// explain` and all that its text says. Package routing/lookup walks the rules; this package
// asks it, compares it with the kernel by [Facts.Ask], and finds the words. [Facts.WhatIf]
// changes the facts to what they would be, and [Save] and [Load] keep them in a file, so that a
// host can be explained on another one.
package explain
