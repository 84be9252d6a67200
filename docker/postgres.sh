#!/bin/sh
# Makes the database at the first start, with POSTGRES_PASSWORD for the user and database `mlflow`, and serves it.
set -eu
: "${POSTGRES_PASSWORD:?POSTGRES_PASSWORD: the database needs a password}"
if [ ! -e "$PGDATA/PG_VERSION" ]; then
  # In a folder of its own first: a start that is cut short leaves no half database behind.
  rm -rf "$PGDATA.part"
  umask 077
  echo "$POSTGRES_PASSWORD" >/tmp/password
  initdb --pgdata "$PGDATA.part" --username mlflow --pwfile /tmp/password --auth scram-sha-256 --encoding UTF8 --no-locale
  rm /tmp/password
  echo "CREATE DATABASE mlflow;" | postgres --single -D "$PGDATA.part" postgres >/dev/null
  mv "$PGDATA.part" "$PGDATA"
  echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
fi
exec postgres -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories=/tmp
