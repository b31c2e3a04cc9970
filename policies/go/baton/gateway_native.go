//go:build !wasip1

package baton

import (
	"fmt"
	"hash/fnv"
	"net/url"
	"slices"
	"strings"
	"time"

	"baton/internal/native"
)

// The same functions as in request_wasip1.go and services_wasip1.go, over what a test has prepared.

func init() {
	native.Decide = func() any { return decide() }
	native.Configure = func(config string) (any, []string) { return configure(config) }
	native.SelfTest = selfTest
	native.Tick = func() {
		if hooks.onTick != nil {
			hooks.onTick()
		}
	}
}

func request() *native.Request { return &native.Current().Request }

func requestID() string                        { return request().ID }
func requestMethod() string                    { return request().Method }
func requestTarget() string                    { return request().Target }
func requestPath() string                      { return request().Path }
func requestQuery() (string, bool)             { return request().Query, request().HasQuery }
func requestAuthority() string                 { return request().Authority }
func requestScheme() string                    { return request().Scheme }
func requestVersion() Version                  { return Version(request().Version) }
func requestRoute() (string, bool)             { return request().Route, request().Route != "" }
func requestParam(name string) (string, bool)  { return lookup(request().Params, name) }
func requestHeader(name string) (string, bool) { return first(request().Headers, name) }
func requestHeaderAll(name string) []string    { return all(request().Headers, name) }
func requestHeaders() Fields                   { return slices.Clone(request().Headers) }
func requestClientIP() string                  { return request().ClientIP }
func requestLocalAddress() string              { return request().LocalAddress }
func requestListener() string                  { return request().Listener }
func requestTLS() *TLS                         { request(); return nil }
func requestClientCertificate() []byte         { request(); return nil }
func requestPassability() Passable             { request(); return PassableDirect }
func requestContentLength() int64              { return request().ContentLength }

func requestHeaderMany(names []string) []*string {
	list := make([]*string, len(names))
	for i, name := range names {
		if value, ok := requestHeader(name); ok {
			list[i] = &value
		}
	}
	return list
}

func requestHeadersRaw() []byte {
	var raw []byte
	for _, field := range request().Headers {
		raw = fmt.Appendf(raw, "%s: %s\r\n", field[0], field[1])
	}
	return raw
}

func requestCookie(name string) (string, bool) {
	for _, value := range requestHeaderAll("cookie") {
		for _, pair := range strings.Split(value, ";") {
			if found, value, ok := strings.Cut(strings.TrimSpace(pair), "="); ok && found == name {
				return value, true
			}
		}
	}
	return "", false
}

func requestQueryParam(name string) (string, bool) {
	values, _ := url.ParseQuery(request().Query)
	if list := values[name]; len(list) > 0 {
		return list[0], true
	}
	return "", false
}

func requestPeer() Peer { return Peer{IP: request().PeerIP, Port: request().PeerPort} }

func requestBodyPrefix(limit int) ([]byte, error) {
	body := request().Body
	return slices.Clone(body[:min(limit, len(body))]), nil
}

func logEnabled(Level) bool { return true }

func logWrite(level Level, message string, fields Fields) {
	gateway := native.Current()
	gateway.Log = append(gateway.Log, native.Line{Level: uint8(level), Message: message, Fields: fields})
}

func metricsCount(name string, labels Fields, delta uint64) {
	native.Current().Metrics[series(name, labels)] += float64(delta)
}

func metricsGauge(name string, labels Fields, value float64) {
	native.Current().Metrics[series(name, labels)] = value
}

func metricsObserve(name string, labels Fields, value float64) {
	native.Current().Metrics[series(name, labels)] += value
}

// series is a name as /metrics has it: x{a="b"}.
func series(name string, labels Fields) string {
	if len(labels) == 0 {
		return name
	}
	pairs := make([]string, len(labels))
	for i, label := range labels {
		pairs[i] = fmt.Sprintf("%s=%q", label[0], label[1])
	}
	return name + "{" + strings.Join(pairs, ",") + "}"
}

func configGet(key string) (string, bool)     { return lookup(native.Current().Config, key) }
func configSecret(name string) (string, bool) { return lookup(native.Current().Secrets, name) }

func storeGet(key string) (Entry, bool) {
	entry, ok := native.Current().Store[key]
	return Entry(entry), ok
}

func storeSet(key string, value []byte, _ time.Duration) (uint64, error) {
	store := native.Current().Store
	version := store[key].Version + 1
	store[key] = native.Entry{Value: slices.Clone(value), Version: version}
	return version, nil
}

func storeCompareAndSet(key string, version uint64, value []byte, ttl time.Duration) (uint64, error) {
	if native.Current().Store[key].Version != version {
		return 0, ErrStoreConflict
	}
	return storeSet(key, value, ttl)
}

func storeDelete(key string) {
	delete(native.Current().Store, key)
	delete(native.Current().Numbers, key)
}

func storeIncrement(key string, delta int64, _ time.Duration) (int64, error) {
	numbers := native.Current().Numbers
	numbers[key] += delta
	return numbers[key], nil
}

// storeTake is a bucket that is never filled again: no time passes in a test.
func storeTake(key string, _, burst, cost float64) bool {
	buckets := native.Current().Buckets
	left, ok := buckets[key]
	if !ok {
		left = burst
	}
	if left < cost {
		return false
	}
	buckets[key] = left - cost
	return true
}

func targetsStatus(name string) (TargetStatus, bool) {
	for group, members := range native.Current().Targets {
		for _, member := range members {
			if member.Name == name || group == name {
				return statusOf(member), true
			}
		}
	}
	return TargetStatus{}, false
}

func targetsMembers(group string) []TargetStatus {
	var list []TargetStatus
	for _, member := range native.Current().Targets[group] {
		list = append(list, statusOf(member))
	}
	return list
}

func statusOf(member native.Member) TargetStatus {
	return TargetStatus{Name: member.Name, Health: Health(member.Health), InFlight: member.InFlight, Load: -1}
}

// targetsPick picks by the key with Hash, and the first with the least in flight otherwise.
func targetsPick(group string, strategy Strategy, key string) (string, bool) {
	var up []native.Member
	for _, member := range native.Current().Targets[group] {
		if Health(member.Health) == HealthUp {
			up = append(up, member)
		}
	}
	if len(up) == 0 {
		return "", false
	}
	if strategy == Hash {
		sum := fnv.New32a()
		sum.Write([]byte(key))
		return up[int(sum.Sum32())%len(up)].Name, true
	}
	return slices.MinFunc(up, func(a, b native.Member) int { return int(a.InFlight) - int(b.InFlight) }).Name, true
}

func targetsRevoke(id, _ string) bool {
	gateway := native.Current()
	gateway.Revoked = append(gateway.Revoked, id)
	return true
}

func calloutFetch(call *Call) (*Answer, error) {
	fetch := native.Current().Fetch
	if fetch == nil {
		return nil, ErrCalloutNotAllowed
	}
	status, headers, body, err := fetch(call.Upstream, call.Method, call.PathAndQuery, call.Headers, call.Body, call.Timeout)
	if err != nil {
		return nil, err
	}
	return &Answer{Status: status, Headers: headers, Body: body}, nil
}

func lookup(values map[string]string, key string) (string, bool) {
	value, ok := values[key]
	return value, ok
}

func first(fields Fields, name string) (string, bool) {
	if values := all(fields, name); len(values) > 0 {
		return values[0], true
	}
	return "", false
}

func all(fields Fields, name string) []string {
	var values []string
	for _, field := range fields {
		if field[0] == name {
			values = append(values, field[1])
		}
	}
	return values
}
