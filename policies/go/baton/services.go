package baton

import (
	"errors"
	"strconv"
	"time"
)

// Level is how much a log line matters.
type Level uint8

// Levels, in the order of the contract.
const (
	LevelTrace Level = iota
	LevelDebug
	LevelInfo
	LevelWarn
	LevelError
)

// Logger writes to the gateway's log. Keys and values alternate, as in log/slog; a value is text, a number, a bool, an error
// or a fmt.Stringer:
//
//	baton.Log.Info("denied", "path", req.Path(), "status", 403)
type Logger struct{}

// Log is the gateway's log.
var Log Logger

// Trace writes a line.
func (l Logger) Trace(message string, pairs ...any) { l.write(LevelTrace, message, pairs) }

// Debug writes a line.
func (l Logger) Debug(message string, pairs ...any) { l.write(LevelDebug, message, pairs) }

// Info writes a line.
func (l Logger) Info(message string, pairs ...any) { l.write(LevelInfo, message, pairs) }

// Warn writes a line.
func (l Logger) Warn(message string, pairs ...any) { l.write(LevelWarn, message, pairs) }

// Error writes a line.
func (l Logger) Error(message string, pairs ...any) { l.write(LevelError, message, pairs) }

// Enabled tells whether a line of that level is written at all: ask it before building a message that few will read.
func (l Logger) Enabled(level Level) bool { return logEnabled(level) }

func (l Logger) write(level Level, message string, pairs []any) {
	if !l.Enabled(level) {
		return
	}
	fields := make(Fields, 0, (len(pairs)+1)/2)
	for i := 0; i < len(pairs); i += 2 {
		value := ""
		if i+1 < len(pairs) {
			value = text(pairs[i+1])
		}
		fields = append(fields, [2]string{text(pairs[i]), value})
	}
	logWrite(level, message, fields)
}

// text is not fmt.Sprint, because fmt makes a module a fifth larger, and compiling it longer.
func text(value any) string {
	switch value := value.(type) {
	case string:
		return value
	case []byte:
		return string(value)
	case bool:
		return strconv.FormatBool(value)
	case int:
		return strconv.Itoa(value)
	case int32:
		return strconv.FormatInt(int64(value), 10)
	case int64:
		return strconv.FormatInt(value, 10)
	case uint:
		return strconv.FormatUint(uint64(value), 10)
	case uint16:
		return strconv.FormatUint(uint64(value), 10)
	case uint32:
		return strconv.FormatUint(uint64(value), 10)
	case uint64:
		return strconv.FormatUint(value, 10)
	case float64:
		return strconv.FormatFloat(value, 'g', -1, 64)
	case error:
		return value.Error()
	case interface{ String() string }:
		return value.String()
	default:
		return "(neither text nor number, bool, error or Stringer)"
	}
}

// Entry is what the store holds under a key.
type Entry struct {
	Value []byte
	// Version changes with every write, and is never 0: 0 is absence.
	Version uint64
}

// Why the store did not take a value.
var (
	ErrStoreFull     = errors.New("baton: the store is full")
	ErrStoreTooLarge = errors.New("baton: the value is too large for the store")
	ErrStoreConflict = errors.New("baton: the store has another version, or no number")
)

var storeErrors = [...]error{ErrStoreFull, ErrStoreTooLarge, ErrStoreConflict}

// Memory is node-local memory that all instances and generations of one policy share.
type Memory struct{}

// Store is the policy's memory. A key has up to 1 KiB, a value up to 64 KiB; a time to live of 0 is for ever.
var Store Memory

// Get gives what is held under a key, if anything is.
func (Memory) Get(key string) (Entry, bool) { return storeGet(key) }

// Set writes a value and gives its new version.
func (Memory) Set(key string, value []byte, ttl time.Duration) (version uint64, err error) {
	return storeSet(key, value, ttl)
}

// CompareAndSet writes a value if the version is still that one; 0 writes only what is not there.
func (Memory) CompareAndSet(key string, version uint64, value []byte, ttl time.Duration) (uint64, error) {
	return storeCompareAndSet(key, version, value, ttl)
}

// Delete forgets a key.
func (Memory) Delete(key string) { storeDelete(key) }

// Increment adds to a number that begins at 0, and gives the new one.
func (Memory) Increment(key string, delta int64, ttl time.Duration) (int64, error) {
	return storeIncrement(key, delta, ttl)
}

// Take takes cost tokens from a bucket that holds burst of them and gets rate of them a second. It is true when they were
// there.
func (Memory) Take(key string, rate, burst, cost float64) bool {
	return storeTake(key, rate, burst, cost)
}

// Meter counts for the gateway's /metrics: a metric x appears as baton_policy_x. A metric is made by its first use, and
// the gateway bounds how many there are.
type Meter struct{}

// Metrics are the policy's metrics.
var Metrics Meter

// Count adds to a counter.
func (Meter) Count(name string, delta uint64, labels ...[2]string) { metricsCount(name, labels, delta) }

// Gauge sets a value that goes up and down.
func (Meter) Gauge(name string, value float64, labels ...[2]string) {
	metricsGauge(name, labels, value)
}

// Observe adds a value to a distribution.
func (Meter) Observe(name string, value float64, labels ...[2]string) {
	metricsObserve(name, labels, value)
}

// Config gives a value of the policy's configuration: strings as they are, everything else as JSON.
func Config(key string) (string, bool) { return configGet(key) }

// Secret gives a secret of the configuration. There is none while Configure runs, because what it leaves in memory is
// kept.
func Secret(name string) (string, bool) { return configSecret(name) }

// Health is what is known of a daemon.
type Health uint8

// States of health, in the order of the contract.
const (
	HealthUp Health = iota
	HealthDraining
	HealthDown
	HealthUnknown
)

// TargetStatus is how a target, or one member of it, is.
type TargetStatus struct {
	Name   string
	Health Health
	// InFlight counts connections that were handed over and are not yet reported finished.
	InFlight uint32
	// Load is what the target itself reports, 0 to 1, and -1 when it does not.
	Load float64
	// LastError is empty when there was none.
	LastError string
}

// Strategy is how a member is picked.
type Strategy uint8

// Strategies, in the order of the contract.
const (
	RoundRobin Strategy = iota
	LeastInFlight
	LeastLoad
	// Hash picks by a key.
	Hash
	RandomTwo
)

// Directory knows the targets of the configuration.
type Directory struct{}

// Targets are the targets that this policy may name.
var Targets Directory

// Status tells how a target or a member is, if there is one of that name.
func (Directory) Status(name string) (TargetStatus, bool) { return targetsStatus(name) }

// Members tells how each member of a target is.
func (Directory) Members(group string) []TargetStatus { return targetsMembers(group) }

// Pick chooses among the healthy members of a target, if there are any. The key is for [Hash], and may be empty.
func (Directory) Pick(group string, strategy Strategy, key string) (string, bool) {
	return targetsPick(group, strategy, key)
}

// Revoke asks the daemon that has the client of a request to end it, in its own time. It is true when the daemon was
// asked: the request was handed over by this policy, and its daemon speaks the native dialect.
func (Directory) Revoke(id, reason string) bool { return targetsRevoke(id, reason) }

// Call is a question to an upstream.
type Call struct {
	// Upstream is named in the configuration, it is not a free URL.
	Upstream     string
	Method       string
	PathAndQuery string
	Headers      Fields
	Body         []byte
	Timeout      time.Duration
}

// Answer is what an upstream said.
type Answer struct {
	Status  int
	Headers Fields
	Body    []byte
}

// Header is the first value of a field, and empty when there is none.
func (a *Answer) Header(name string) string {
	for _, field := range a.Headers {
		if field[0] == name {
			return field[1]
		}
	}
	return ""
}

// Fetch asks an upstream and waits for its answer; other instances go on meanwhile. How often, how long and how much is
// bounded by the configuration.
func Fetch(call Call) (*Answer, error) { return calloutFetch(&call) }

// Why there was no answer. What cannot be reached says why, so test it with errors.Is.
var (
	ErrCalloutNotAllowed  = errors.New("baton: this policy may not ask that upstream")
	ErrCalloutTimedOut    = errors.New("baton: the upstream did not answer in time")
	ErrCalloutUnreachable = errors.New("baton: the upstream cannot be reached")
	ErrCalloutTooLarge    = errors.New("baton: the upstream's answer is too large")
	ErrCalloutBudget      = errors.New("baton: this hook has asked often enough")
)

var calloutErrors = [...]error{
	ErrCalloutNotAllowed, ErrCalloutTimedOut, ErrCalloutUnreachable, ErrCalloutTooLarge, ErrCalloutBudget,
}

// unreachable is ErrCalloutUnreachable with its reason.
type unreachable string

func (u unreachable) Error() string { return ErrCalloutUnreachable.Error() + ": " + string(u) }
func (unreachable) Unwrap() error   { return ErrCalloutUnreachable }
