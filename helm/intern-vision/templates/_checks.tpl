{{/* What a schema cannot say, in plain words: all faults at once. Included once. */}}
{{- define "intern-vision.checks" -}}
{{- $o := .Values.objectStore -}}
{{- $m := .Values.mlflow -}}
{{- $faults := list -}}
{{- if eq $o.mode "external" -}}
{{- if not $o.endpoint -}}
{{- $faults = append $faults "objectStore.endpoint: mode external needs the S3 server's address, https://host:port, or aws" -}}
{{- end -}}
{{- if not (or $o.existingSecret $o.workloadIdentity) -}}
{{- $faults = append $faults "objectStore.existingSecret: mode external needs the name of a Secret with the keys, or workloadIdentity: true" -}}
{{- end -}}
{{- else -}}
{{- if $o.endpoint -}}
{{- $faults = append $faults "objectStore.endpoint: mode embedded has its own store; set objectStore.mode to external, or leave the endpoint empty" -}}
{{- end -}}
{{- if $o.workloadIdentity -}}
{{- $faults = append $faults "objectStore.workloadIdentity: the embedded store knows keys only; set objectStore.mode to external, or workloadIdentity to false" -}}
{{- end -}}
{{- end -}}
{{- if eq $m.mode "external" -}}
{{- if not $m.externalUri -}}
{{- $faults = append $faults "mlflow.externalUri: mode external needs the server's address, https://host" -}}
{{- end -}}
{{- if $m.ingress.enabled -}}
{{- $faults = append $faults "mlflow.ingress.enabled: an external MLflow has its own; set it to false" -}}
{{- end -}}
{{- else -}}
{{- if and (eq $m.database.type "sqlite") (gt (int $m.replicas) 1) -}}
{{- $faults = append $faults "mlflow.replicas: one SQLite file takes one pod; set replicas to 1, or mlflow.database.type to postgres" -}}
{{- end -}}
{{- if and (eq $m.database.type "postgres") (not $m.database.existingSecret) -}}
{{- $faults = append $faults "mlflow.database.existingSecret: type postgres needs the name of a Secret with the databases' addresses" -}}
{{- end -}}
{{- if and (eq $m.database.type "postgres") $m.auth.enabled (eq $m.database.uriKey $m.database.authUriKey) -}}
{{- $faults = append $faults "mlflow.database.authUriKey: the login database must be another than the tracking database; name another key" -}}
{{- end -}}
{{- if and $m.ingress.enabled (not $m.ingress.host) -}}
{{- $faults = append $faults "mlflow.ingress.host: an Ingress needs its host name" -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.registration.mode "cr") (not (.Capabilities.APIVersions.Has "pipelines.kubeflow.org/v2beta1")) -}}
{{- $faults = append $faults "registration.mode: cr needs pipelines.kubeflow.org/v2beta1, which this cluster has not; Kubeflow Pipelines keeps its pipelines in a database here, so set it to job" -}}
{{- end -}}
{{- if and .Values.registration.platform (ne .Values.registration.mode "job") -}}
{{- $faults = append $faults (printf "registration.platform: mode %s does not put it into the pipelines; set registration.mode to job, or leave it empty and use intern compile --platform" .Values.registration.mode) -}}
{{- end -}}
{{- $owner := dig "metadata" "annotations" "meta.helm.sh/release-name" "" (lookup "v1" "ConfigMap" .Release.Namespace "intern-settings" | default dict) -}}
{{- if and $owner (ne $owner .Release.Name) -}}
{{- $faults = append $faults (printf "release %q is in namespace %s already, and steps find their settings by one name: upgrade that release, or install into another namespace" $owner .Release.Namespace) -}}
{{- end -}}
{{- if $faults -}}
{{- fail (printf "\n  %s" (join "\n  " $faults)) -}}
{{- end -}}
{{- end -}}
