package main

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A Series has repeated measurements, in milliseconds.
type Series struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	Runs   int     `json:"runs"`
}

func series(values []time.Duration) Series {
	if len(values) == 0 {
		return Series{}
	}
	sorted := slices.Sorted(slices.Values(values))
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	middle := len(sorted) / 2
	median := ms(sorted[middle])
	if len(sorted)%2 == 0 {
		median = (median + ms(sorted[middle-1])) / 2
	}
	return Series{Median: median, Min: ms(sorted[0]), Max: ms(sorted[len(sorted)-1]), Runs: len(sorted)}
}

func (s Series) String() string {
	if s.Runs == 0 {
		return "-"
	}
	return fmt.Sprintf("%s (%s-%s)", milliseconds(s.Median), milliseconds(s.Min), milliseconds(s.Max))
}

// milliseconds shows three digits.
func milliseconds(v float64) string {
	switch {
	case v >= 99.95:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 9.995:
		return strconv.FormatFloat(v, 'f', 1, 64)
	default:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// A clock is the CPU time of a process, in nanoseconds, or of this thread.
type clock int32

const thisThread clock = unix.CLOCK_THREAD_CPUTIME_ID

// clockOf is clock_getcpuclockid(3).
func clockOf(pid int) clock { return clock(^pid<<3 | 2) }

func (c clock) read() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(int32(c), &t); err != nil {
		return 0, fmt.Errorf("reading a CPU clock: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

// Memory is what a process holds, in MB.
type Memory struct {
	RSS float64 `json:"rss_mb"`
	// Private is what no file backs.
	Private float64 `json:"private_mb"`
}

func memoryOf(pid int) (Memory, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Memory{}, fmt.Errorf("reading the memory of a process: %w", err)
	}
	var m Memory
	for line := range bytes.Lines(data) {
		name, rest, _ := bytes.Cut(line, []byte(":"))
		fields := bytes.Fields(rest)
		if len(fields) == 0 {
			continue
		}
		kB, err := strconv.ParseFloat(string(fields[0]), 64)
		if err != nil {
			continue
		}
		switch string(name) {
		case "VmRSS":
			m.RSS = kB / 1024
		case "RssAnon":
			m.Private = kB / 1024
		}
	}
	return m, nil
}
