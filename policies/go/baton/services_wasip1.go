package baton

import (
	"runtime"
	"time"
	"unsafe"

	"baton/internal/abi"
)

// Functions of the other interfaces, in the order of wit/policy.wit; see request_wasip1.go. Clock and random are Go's own.

//go:wasmimport baton:policy/log@0.1.0 enabled
func importLogEnabled(level uint32) uint32

func logEnabled(level Level) bool { return importLogEnabled(uint32(level)) != 0 }

//go:wasmimport baton:policy/log@0.1.0 write
//go:noescape
func importLogWrite(level uint32, message string, fields unsafe.Pointer, count uint32)

func logWrite(level Level, message string, fields Fields) {
	list, count := abi.Pairs(fields)
	importLogWrite(uint32(level), message, list, count)
	runtime.KeepAlive(fields)
}

//go:wasmimport baton:policy/metrics@0.1.0 count
//go:noescape
func importMetricsCount(name string, labels unsafe.Pointer, count uint32, delta uint64)

func metricsCount(name string, labels Fields, delta uint64) {
	list, count := abi.Pairs(labels)
	importMetricsCount(name, list, count, delta)
	runtime.KeepAlive(labels)
}

//go:wasmimport baton:policy/metrics@0.1.0 gauge
//go:noescape
func importMetricsGauge(name string, labels unsafe.Pointer, count uint32, value float64)

func metricsGauge(name string, labels Fields, value float64) {
	list, count := abi.Pairs(labels)
	importMetricsGauge(name, list, count, value)
	runtime.KeepAlive(labels)
}

//go:wasmimport baton:policy/metrics@0.1.0 observe
//go:noescape
func importMetricsObserve(name string, labels unsafe.Pointer, count uint32, value float64)

func metricsObserve(name string, labels Fields, value float64) {
	list, count := abi.Pairs(labels)
	importMetricsObserve(name, list, count, value)
	runtime.KeepAlive(labels)
}

//go:wasmimport baton:policy/config@0.1.0 get
//go:noescape
func importConfigGet(key string, result unsafe.Pointer)

func configGet(key string) (string, bool) {
	var result abi.Result
	abi.Room(answerBytes)
	importConfigGet(key, result.Pointer())
	return result.At().OptionalString(0)
}

//go:wasmimport baton:policy/config@0.1.0 secret
//go:noescape
func importConfigSecret(name string, result unsafe.Pointer)

func configSecret(name string) (string, bool) {
	var result abi.Result
	abi.Room(answerBytes)
	importConfigSecret(name, result.Pointer())
	return result.At().OptionalString(0)
}

//go:wasmimport baton:policy/store@0.1.0 get
//go:noescape
func importStoreGet(key string, result unsafe.Pointer)

// storeGet: option; 8 value   16 u64 version
func storeGet(key string) (Entry, bool) {
	var result abi.Result
	abi.Room(answerBytes)
	importStoreGet(key, result.Pointer())
	at := result.At()
	if !at.Bool(0) {
		return Entry{}, false
	}
	return Entry{Value: at.Bytes(8), Version: at.U64(16)}, true
}

//go:wasmimport baton:policy/store@0.1.0 set
//go:noescape
func importStoreSet(key, value string, hasTTL uint32, ttl uint64, result unsafe.Pointer)

func storeSet(key string, value []byte, ttl time.Duration) (uint64, error) {
	var result abi.Result
	has, ms := optionalTTL(ttl)
	importStoreSet(key, abi.Text(value), has, ms, result.Pointer())
	return stored(result.At())
}

//go:wasmimport baton:policy/store@0.1.0 compare-and-set
//go:noescape
func importStoreCompareAndSet(key string, version uint64, value string, hasTTL uint32, ttl uint64, result unsafe.Pointer)

func storeCompareAndSet(key string, version uint64, value []byte, ttl time.Duration) (uint64, error) {
	var result abi.Result
	has, ms := optionalTTL(ttl)
	importStoreCompareAndSet(key, version, abi.Text(value), has, ms, result.Pointer())
	return stored(result.At())
}

//go:wasmimport baton:policy/store@0.1.0 delete
//go:noescape
func importStoreDelete(key string)

func storeDelete(key string) { importStoreDelete(key) }

//go:wasmimport baton:policy/store@0.1.0 increment
//go:noescape
func importStoreIncrement(key string, delta int64, hasTTL uint32, ttl uint64, result unsafe.Pointer)

func storeIncrement(key string, delta int64, ttl time.Duration) (int64, error) {
	var result abi.Result
	has, ms := optionalTTL(ttl)
	importStoreIncrement(key, delta, has, ms, result.Pointer())
	number, err := stored(result.At())
	return int64(number), err
}

// stored: result; 8 u64 or s64, or u8 error
func stored(at abi.At) (uint64, error) {
	if at.Bool(0) {
		return 0, storeErrors[at.U8(8)]
	}
	return at.U64(8), nil
}

func optionalTTL(ttl time.Duration) (has uint32, ms uint64) {
	if ttl <= 0 {
		return 0, 0
	}
	return 1, uint64((ttl + time.Millisecond - 1) / time.Millisecond)
}

//go:wasmimport baton:policy/store@0.1.0 take
//go:noescape
func importStoreTake(key string, rate, burst, cost float64) uint32

func storeTake(key string, rate, burst, cost float64) bool {
	return importStoreTake(key, rate, burst, cost) != 0
}

//go:wasmimport baton:policy/targets@0.1.0 status
//go:noescape
func importTargetsStatus(name string, result unsafe.Pointer)

func targetsStatus(name string) (TargetStatus, bool) {
	var result abi.Result
	abi.Room(0)
	importTargetsStatus(name, result.Pointer())
	at := result.At()
	if !at.Bool(0) {
		return TargetStatus{}, false
	}
	return targetAt(at.Inside(8)), true
}

//go:wasmimport baton:policy/targets@0.1.0 members
//go:noescape
func importTargetsMembers(group string, result unsafe.Pointer)

func targetsMembers(group string) []TargetStatus {
	var result abi.Result
	abi.Room(answerBytes)
	importTargetsMembers(group, result.Pointer())
	return abi.Elements(result.At(), 0, 48, targetAt)
}

// targetAt: 0 name   8 u8 health   12 u32 in-flight   16 option<f64> load   32 option last-error
func targetAt(at abi.At) TargetStatus {
	status := TargetStatus{Name: at.String(0), Health: Health(at.U8(8)), InFlight: at.U32(12), Load: -1}
	if at.Bool(16) {
		status.Load = at.F64(24)
	}
	status.LastError, _ = at.OptionalString(32)
	return status
}

//go:wasmimport baton:policy/targets@0.1.0 pick
//go:noescape
func importTargetsPick(group string, strategy, hasKey uint32, key string, result unsafe.Pointer)

func targetsPick(group string, strategy Strategy, key string) (string, bool) {
	var result abi.Result
	var hasKey uint32
	if key != "" {
		hasKey = 1
	}
	abi.Room(0)
	importTargetsPick(group, uint32(strategy), hasKey, key, result.Pointer())
	return result.At().OptionalString(0)
}

//go:wasmimport baton:policy/targets@0.1.0 revoke
//go:noescape
func importTargetsRevoke(id, reason string) uint32

func targetsRevoke(id, reason string) bool { return importTargetsRevoke(id, reason) != 0 }

//go:wasmimport baton:policy/callout@0.1.0 fetch
//go:noescape
func importCalloutFetch(upstream, method, pathAndQuery string, headers unsafe.Pointer, count uint32, body string,
	timeout uint32, result unsafe.Pointer)

// calloutFetch: result; 4 u16 status   8 headers   16 body; or 4 u8 error   8 string
func calloutFetch(call *Call) (*Answer, error) {
	var result abi.Result
	headers, count := abi.Pairs(call.Headers)
	abi.Room(answerBytes)
	importCalloutFetch(call.Upstream, call.Method, call.PathAndQuery, headers, count, abi.Text(call.Body),
		milliseconds(call.Timeout), result.Pointer())
	runtime.KeepAlive(call)
	at := result.At()
	if !at.Bool(0) {
		return &Answer{Status: int(at.U16(4)), Headers: fieldsAt(at, 8), Body: at.Bytes(16)}, nil
	}
	err := calloutErrors[at.U8(4)]
	if err == ErrCalloutUnreachable {
		return nil, unreachable(at.String(8))
	}
	return nil, err
}
