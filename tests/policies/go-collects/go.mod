module collects

go 1.24
