// Package hook joins package baton to the packages of its other hooks, which need what it keeps to itself.
package hook
