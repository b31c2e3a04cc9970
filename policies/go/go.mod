module policies

go 1.24

require baton v0.0.0

replace baton => ./baton
