// SPDX-License-Identifier: Apache-2.0

// A small API server of Kubernetes for tests: the machinery that kube-apiserver is made of
// (k8s.io/apiserver: storage in etcd, watch cache, resource versions, chunks, bookmarks,
// server-side apply) with the types that discovery needs. It has no validation, no defaults, no
// controllers and no authentication but three tokens. A test writes what controllers would.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsopenapi "k8s.io/apiextensions-apiserver/pkg/generated/openapi"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/token/tokenfile"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/storage/names"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/util/compatibility"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

const accountPrefix = "system:serviceaccount:"

// Bearer tokens and the users that they belong to.
var tokens = map[string]*user.DefaultInfo{
	"admin-token":     {Name: "admin", Groups: []string{user.SystemPrivilegedGroup}},
	"steelyard-token": {Name: accountPrefix + "default:steelyard"},
	"nobody-token":    {Name: accountPrefix + "default:nobody"},
}

type kind struct {
	version    schema.GroupVersion
	name       string
	resource   string
	namespaced bool
	object     runtime.Object
	list       runtime.Object
}

var kinds = []kind{
	{corev1.SchemeGroupVersion, "Namespace", "namespaces", false, &corev1.Namespace{}, &corev1.NamespaceList{}},
	{corev1.SchemeGroupVersion, "Secret", "secrets", true, &corev1.Secret{}, &corev1.SecretList{}},
	{corev1.SchemeGroupVersion, "Service", "services", true, &corev1.Service{}, &corev1.ServiceList{}},
	{corev1.SchemeGroupVersion, "ServiceAccount", "serviceaccounts", true, &corev1.ServiceAccount{}, &corev1.ServiceAccountList{}},
	{discoveryv1.SchemeGroupVersion, "EndpointSlice", "endpointslices", true, &discoveryv1.EndpointSlice{}, &discoveryv1.EndpointSliceList{}},
	{rbacv1.SchemeGroupVersion, "Role", "roles", true, &rbacv1.Role{}, &rbacv1.RoleList{}},
	{rbacv1.SchemeGroupVersion, "RoleBinding", "rolebindings", true, &rbacv1.RoleBinding{}, &rbacv1.RoleBindingList{}},
}

var versions = []schema.GroupVersion{corev1.SchemeGroupVersion, discoveryv1.SchemeGroupVersion, rbacv1.SchemeGroupVersion}

// strategy accepts every object as it is.
type strategy struct {
	runtime.ObjectTyper
	names.NameGenerator
	namespaced bool
}

func (s strategy) NamespaceScoped() bool                                               { return s.namespaced }
func (strategy) PrepareForCreate(context.Context, runtime.Object)                      {}
func (strategy) PrepareForUpdate(_ context.Context, _, _ runtime.Object)               {}
func (strategy) Validate(context.Context, runtime.Object) field.ErrorList              { return nil }
func (strategy) ValidateUpdate(_ context.Context, _, _ runtime.Object) field.ErrorList { return nil }
func (strategy) WarningsOnCreate(context.Context, runtime.Object) []string             { return nil }
func (strategy) WarningsOnUpdate(_ context.Context, _, _ runtime.Object) []string      { return nil }
func (strategy) Canonicalize(runtime.Object)                                           {}
func (strategy) AllowCreateOnUpdate() bool                                             { return false }
func (strategy) AllowUnconditionalUpdate() bool                                        { return true }

// rights holds the rules of each user by namespace.
type rights map[string]map[string][]rbacv1.PolicyRule

// readRights returns what the Roles and RoleBindings of a manifest grant to service accounts.
func readRights(path string) (rights, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	decoder := yaml.NewYAMLOrJSONDecoder(file, 4096)
	roles, granted := map[string][]rbacv1.PolicyRule{}, rights{}
	var bindings []rbacv1.RoleBinding
	for {
		var raw runtime.RawExtension
		if err := decoder.Decode(&raw); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		var meta metav1.TypeMeta
		if err := yaml.Unmarshal(raw.Raw, &meta); err != nil {
			return nil, err
		}
		switch meta.Kind {
		case "Role":
			var role rbacv1.Role
			if err := yaml.UnmarshalStrict(raw.Raw, &role); err != nil {
				return nil, err
			}
			roles[role.Namespace+"/"+role.Name] = role.Rules
		case "RoleBinding":
			var binding rbacv1.RoleBinding
			if err := yaml.UnmarshalStrict(raw.Raw, &binding); err != nil {
				return nil, err
			}
			bindings = append(bindings, binding)
		}
	}
	for _, binding := range bindings {
		rules := roles[binding.Namespace+"/"+binding.RoleRef.Name]
		for _, subject := range binding.Subjects {
			name := accountPrefix + subject.Namespace + ":" + subject.Name
			if granted[name] == nil {
				granted[name] = map[string][]rbacv1.PolicyRule{}
			}
			granted[name][binding.Namespace] = append(granted[name][binding.Namespace], rules...)
		}
	}
	return granted, nil
}

// Authorize allows administrators everything, everybody what is no resource, and service accounts
// what their Roles grant.
func (r rights) Authorize(_ context.Context, asked authorizer.Attributes) (authorizer.Decision, string, error) {
	name := asked.GetUser().GetName()
	if !strings.HasPrefix(name, accountPrefix) || !asked.IsResourceRequest() {
		return authorizer.DecisionAllow, "", nil
	}
	resource := asked.GetResource()
	if asked.GetSubresource() != "" {
		resource += "/" + asked.GetSubresource()
	}
	for _, rule := range r[name][asked.GetNamespace()] {
		if slices.Contains(rule.APIGroups, asked.GetAPIGroup()) && slices.Contains(rule.Resources, resource) &&
			slices.Contains(rule.Verbs, asked.GetVerb()) {
			return authorizer.DecisionAllow, "", nil
		}
	}
	return authorizer.DecisionDeny, "", nil
}

// definitions describes our kinds as objects of any form; server-side apply needs their names.
func definitions(reference common.ReferenceCallback) map[string]common.OpenAPIDefinition {
	found := apiextensionsopenapi.GetOpenAPIDefinitions(reference)
	for _, k := range kinds {
		for name, object := range map[string]runtime.Object{k.name: k.object, k.name + "List": k.list} {
			model := object.(interface{ OpenAPIModelName() string }).OpenAPIModelName()
			found[model] = common.OpenAPIDefinition{Schema: spec.Schema{
				SchemaProps: spec.SchemaProps{Type: []string{"object"}},
				VendorExtensible: spec.VendorExtensible{Extensions: spec.Extensions{
					"x-kubernetes-preserve-unknown-fields": true,
					"x-kubernetes-group-version-kind": []interface{}{map[string]interface{}{
						"group": k.version.Group, "version": k.version.Version, "kind": name,
					}},
				}},
			}}
		}
	}
	return found
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme, rbacv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	unversioned := schema.GroupVersion{Version: "v1"}
	metav1.AddToGroupVersion(scheme, unversioned)
	scheme.AddUnversionedTypes(unversioned, &metav1.Status{}, &metav1.APIVersions{}, &metav1.APIGroupList{},
		&metav1.APIGroup{}, &metav1.APIResourceList{})
	for _, k := range kinds {
		// The machinery converts by way of an internal version; here it is the same type.
		scheme.AddKnownTypes(schema.GroupVersion{Group: k.version.Group, Version: runtime.APIVersionInternal}, k.object, k.list)
	}
	for _, version := range versions {
		if err := scheme.SetVersionPriority(version); err != nil {
			return nil, err
		}
	}
	return scheme, nil
}

func newConfig(scheme *runtime.Scheme, codecs serializer.CodecFactory, etcd, folder string, port int, granted rights) (*genericapiserver.RecommendedConfig, error) {
	config := genericapiserver.NewRecommendedConfig(codecs)
	config.EffectiveVersion = compatibility.DefaultBuildEffectiveVersion()
	namer := openapinamer.NewDefinitionNamer(scheme)
	config.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(definitions, namer)
	config.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(definitions, namer)
	config.Authentication.Authenticator = bearertoken.New(tokenfile.New(tokens))
	config.Authorization.Authorizer = granted

	storage := genericoptions.NewEtcdOptions(storagebackend.NewDefaultConfig("/registry", codecs.LegacyCodec(versions...)))
	storage.StorageConfig.Transport.ServerList = []string{etcd}
	storage.DefaultStorageMediaType = "application/json"
	if err := storage.ApplyTo(&config.Config); err != nil {
		return nil, err
	}
	serving := genericoptions.NewSecureServingOptions().WithLoopback()
	serving.BindAddress, serving.BindPort = net.IPv4(127, 0, 0, 1), port
	serving.ServerCert.CertDirectory, serving.ServerCert.PairName = folder, "apiserver"
	if err := serving.MaybeDefaultWithSelfSignedCerts("localhost", nil, []net.IP{net.IPv4(127, 0, 0, 1)}); err != nil {
		return nil, err
	}
	return config, serving.ApplyTo(&config.SecureServing, &config.LoopbackClientConfig)
}

// newStore returns the storage of one kind.
func newStore(k kind, scheme *runtime.Scheme, getter generic.RESTOptionsGetter) (*genericregistry.Store, error) {
	accept := strategy{scheme, names.SimpleNameGenerator, k.namespaced}
	resource := k.version.WithResource(k.resource).GroupResource()
	store := &genericregistry.Store{
		NewFunc:                   func() runtime.Object { return k.object.DeepCopyObject() },
		NewListFunc:               func() runtime.Object { return k.list.DeepCopyObject() },
		DefaultQualifiedResource:  resource,
		SingularQualifiedResource: k.version.WithResource(strings.ToLower(k.name)).GroupResource(),
		CreateStrategy:            accept,
		UpdateStrategy:            accept,
		DeleteStrategy:            accept,
		TableConvertor:            rest.NewDefaultTableConvertor(resource),
	}
	return store, store.CompleteWithOptions(&generic.StoreOptions{RESTOptions: getter})
}

// install makes the server serve our kinds.
func install(server *genericapiserver.GenericAPIServer, scheme *runtime.Scheme, codecs serializer.CodecFactory, getter generic.RESTOptionsGetter) error {
	storages := map[schema.GroupVersion]map[string]rest.Storage{}
	for _, version := range versions {
		storages[version] = map[string]rest.Storage{}
	}
	for _, k := range kinds {
		store, err := newStore(k, scheme, getter)
		if err != nil {
			return err
		}
		storages[k.version][k.resource] = store
	}
	for version, served := range storages {
		info := genericapiserver.NewDefaultAPIGroupInfo(version.Group, scheme, runtime.NewParameterCodec(scheme), codecs)
		info.VersionedResourcesStorageMap[version.Version] = served
		if version.Group == "" {
			if err := server.InstallLegacyAPIGroup("/api", &info); err != nil {
				return err
			}
		} else if err := server.InstallAPIGroup(&info); err != nil {
			return err
		}
	}
	return nil
}

func run() error {
	etcd := flag.String("etcd", "http://127.0.0.1:2379", "where etcd listens")
	port := flag.Int("port", 6443, "where to listen on 127.0.0.1")
	folder := flag.String("certs", "", "the folder of the server's certificate, which is made if it is missing")
	manifest := flag.String("rbac", "", "a manifest whose Roles and RoleBindings grant rights to service accounts")
	flag.Parse()
	granted, err := readRights(*manifest)
	if err != nil {
		return err
	}
	scheme, err := newScheme()
	if err != nil {
		return err
	}
	codecs := serializer.NewCodecFactory(scheme)
	config, err := newConfig(scheme, codecs, *etcd, *folder, *port, granted)
	if err != nil {
		return err
	}
	server, err := config.Complete().New("steelyard-test", genericapiserver.NewEmptyDelegate())
	if err != nil {
		return err
	}
	if err := install(server, scheme, codecs, config.RESTOptionsGetter); err != nil {
		return err
	}
	return server.PrepareRun().RunWithContext(genericapiserver.SetupSignalContext())
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
