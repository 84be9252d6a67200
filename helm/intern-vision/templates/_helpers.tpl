{{/* Names leave room for suffixes within 63 characters. */}}
{{- define "intern-vision.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "intern-vision.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "intern-vision.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Selectors never change between versions; labels may. Call with (dict "root" $ "component" "..."). */}}
{{- define "intern-vision.selector" -}}
app.kubernetes.io/name: {{ include "intern-vision.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "intern-vision.labels" -}}
{{ include "intern-vision.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: intern-vision
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of pods: without a service mesh's proxy, which lets neither probes nor steps without one through. */}}
{{- define "intern-vision.podLabels" -}}
{{ include "intern-vision.labels" . }}
sidecar.istio.io/inject: "false"
{{- end -}}

{{/* Call with (dict "root" $ "image" .Values...image). */}}
{{- define "intern-vision.image" -}}
{{- $path := .image.repository -}}
{{- with .root.Values.imageRegistry }}{{- $path = printf "%s/%s" (trimSuffix "/" .) $path -}}{{- end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $path .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $path (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "intern-vision.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "intern-vision.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .Values.security.runAsUser }}
  runAsGroup: {{ .Values.security.runAsGroup }}
  fsGroup: {{ .Values.security.fsGroup }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "intern-vision.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* nodeSelector, tolerations and affinity of a block of values. */}}
{{- define "intern-vision.scheduling" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* "true" where an optional API is to be used. Call with (dict "root" $ "enabled" auto|always|never "api" "group/version"). */}}
{{- define "intern-vision.optional" -}}
{{- if or (eq .enabled "always") (and (eq .enabled "auto") (.root.Capabilities.APIVersions.Has .api)) -}}true{{- end -}}
{{- end -}}

{{- define "intern-vision.runtime" -}}
{{- include "intern-vision.optional" (dict "root" . "enabled" .Values.trainingRuntime.enabled "api" "trainer.kubeflow.org/v1alpha1") -}}
{{- end -}}

{{- define "intern-vision.s3Secret" -}}
{{- default "intern-s3" .Values.objectStore.existingSecret -}}
{{- end -}}

{{- define "intern-vision.mlflowSecret" -}}
{{- default "intern-mlflow" .Values.mlflow.auth.existingSecret -}}
{{- end -}}

{{/* As INTERN_S3_ENDPOINT wants it: an address, or "aws". */}}
{{- define "intern-vision.s3Endpoint" -}}
{{- if eq .Values.objectStore.mode "embedded" -}}
http://{{ include "intern-vision.fullname" . }}-store.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:{{ .Values.objectStore.embedded.port }}
{{- else -}}
{{- trimSuffix "/" .Values.objectStore.endpoint -}}
{{- end -}}
{{- end -}}

{{- define "intern-vision.mlflowUri" -}}
{{- if eq .Values.mlflow.mode "embedded" -}}
http://{{ include "intern-vision.fullname" . }}-mlflow.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:{{ .Values.mlflow.service.port }}
{{- else -}}
{{- trimSuffix "/" .Values.mlflow.externalUri -}}
{{- end -}}
{{- end -}}

{{- define "intern-vision.store" -}}
s3://{{ .Values.objectStore.bucket }}/{{ .Values.objectStore.prefix }}
{{- end -}}

{{/* The settings that steps read; a map of keys to texts, also the data of the ConfigMap intern-settings. */}}
{{- define "intern-vision.settings" -}}
s3-endpoint: {{ include "intern-vision.s3Endpoint" . | quote }}
s3-region: {{ .Values.objectStore.region | quote }}
store: {{ include "intern-vision.store" . | quote }}
mlflow-uri: {{ include "intern-vision.mlflowUri" . | quote }}
s3-checksums: {{ .Values.objectStore.checksums | quote }}
{{- if .Values.objectStore.caConfigMap }}
ca-bundle: {{ printf "/etc/intern/ca/%s" .Values.objectStore.caKey | quote }}
{{- end }}
{{- if include "intern-vision.runtime" . }}
training-runtime: {{ printf "%s/%s" (ternary "ClusterTrainingRuntime" "TrainingRuntime" (eq .Values.trainingRuntime.scope "cluster")) .Values.trainingRuntime.name | quote }}
{{- end }}
{{- end -}}

{{/* Keys of the object store as environment variables; optional, so that a program and not the kubelet says what is missing. */}}
{{- define "intern-vision.s3Keys" -}}
{{- if not .Values.objectStore.workloadIdentity }}
- name: AWS_ACCESS_KEY_ID
  valueFrom:
    secretKeyRef: {name: {{ include "intern-vision.s3Secret" . }}, key: {{ .Values.objectStore.accessKeyKey }}, optional: true}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom:
    secretKeyRef: {name: {{ include "intern-vision.s3Secret" . }}, key: {{ .Values.objectStore.secretKeyKey }}, optional: true}
{{- end }}
- name: AWS_DEFAULT_REGION
  value: {{ .Values.objectStore.region | quote }}
- name: AWS_REQUEST_CHECKSUM_CALCULATION
  value: {{ .Values.objectStore.checksums }}
- name: AWS_RESPONSE_CHECKSUM_VALIDATION
  value: {{ .Values.objectStore.checksums }}
{{- if .Values.objectStore.caConfigMap }}
- name: AWS_CA_BUNDLE
  value: /etc/intern/ca/{{ .Values.objectStore.caKey }}
{{- end }}
{{- end -}}

{{/* What a step's pod has, for the chart's jobs and the training runtime. */}}
{{- define "intern-vision.stepEnv" -}}
- name: INTERN_S3_ENDPOINT
  value: {{ include "intern-vision.s3Endpoint" . | quote }}
- name: INTERN_STORE
  value: {{ include "intern-vision.store" . | quote }}
- name: MLFLOW_TRACKING_URI
  value: {{ include "intern-vision.mlflowUri" . | quote }}
{{- if .Values.mlflow.auth.enabled }}
- name: MLFLOW_TRACKING_USERNAME
  valueFrom:
    secretKeyRef: {name: {{ include "intern-vision.mlflowSecret" . }}, key: {{ .Values.mlflow.auth.usernameKey }}, optional: true}
- name: MLFLOW_TRACKING_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ include "intern-vision.mlflowSecret" . }}, key: {{ .Values.mlflow.auth.passwordKey }}, optional: true}
{{- end }}
{{- if .Values.objectStore.caConfigMap }}
- name: MLFLOW_TRACKING_SERVER_CERT_PATH
  value: /etc/intern/ca/{{ .Values.objectStore.caKey }}
{{- end }}
{{ include "intern-vision.s3Keys" . }}
{{- end -}}

{{- define "intern-vision.caMount" -}}
{{- if .Values.objectStore.caConfigMap }}
- {name: ca, mountPath: /etc/intern/ca, readOnly: true}
{{- end }}
{{- end -}}

{{- define "intern-vision.caVolume" -}}
{{- with .Values.objectStore.caConfigMap }}
- name: ca
  configMap: {name: {{ . }}}
{{- end }}
{{- end -}}

{{/* A value of a Secret that is made once: what the cluster has, else new. Call with (dict "root" $ "secret" "..." "key" "..."). */}}
{{- define "intern-vision.generated" -}}
{{- $found := lookup "v1" "Secret" .root.Release.Namespace .secret | default dict -}}
{{- $data := get $found "data" | default dict -}}
{{- if hasKey $data .key -}}
{{- get $data .key -}}
{{- else -}}
{{- randAlphaNum 40 | b64enc -}}
{{- end -}}
{{- end -}}

{{/* A compiled pipeline with this release's image, Secrets and CA in place of the defaults it was compiled with. */}}
{{- define "intern-vision.pipeline" -}}
{{- $root := .root -}}
{{- $o := $root.Values.objectStore -}}
{{- $text := $root.Files.Get .path -}}
{{- $text = regexReplaceAll "(?m)defaultValue: intern-vision:\\S+$" $text (printf "defaultValue: %s" (include "intern-vision.image" (dict "root" $root "image" $root.Values.image))) -}}
{{- $text = regexReplaceAll "(?m)(secretName|constant): intern-s3$" $text (printf "${1}: %s" (include "intern-vision.s3Secret" $root)) -}}
{{- $text = regexReplaceAll "(?m)secretKey: access-key$" $text (printf "secretKey: %s" $o.accessKeyKey) -}}
{{- $text = regexReplaceAll "(?m)secretKey: secret-key$" $text (printf "secretKey: %s" $o.secretKeyKey) -}}
{{- $text = regexReplaceAll "(?m)(secretName|constant): intern-mlflow$" $text (printf "${1}: %s" (include "intern-vision.mlflowSecret" $root)) -}}
{{- $text = regexReplaceAll "(?m)secretKey: username$" $text (printf "secretKey: %s" $root.Values.mlflow.auth.usernameKey) -}}
{{- $text = regexReplaceAll "(?m)secretKey: password$" $text (printf "secretKey: %s" $root.Values.mlflow.auth.passwordKey) -}}
{{- with $o.caConfigMap -}}
{{- $text = regexReplaceAll "(?m)(configMapName|constant): intern-ca$" $text (printf "${1}: %s" .) -}}
{{- end -}}
{{- $text -}}
{{- end -}}
