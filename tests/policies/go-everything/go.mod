module everything

go 1.24

require baton v0.0.0

replace baton => ../../../policies/go/baton
