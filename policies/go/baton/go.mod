module baton

go 1.24
