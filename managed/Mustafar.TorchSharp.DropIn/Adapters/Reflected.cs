using System.Collections.Concurrent;
using System.Reflection;
using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>Reads objects of classes that this library does not reference, by the names of their members.</summary>
internal static class Reflected
{
    private const BindingFlags Members = BindingFlags.Instance | BindingFlags.Public | BindingFlags.NonPublic;

    private static readonly ConcurrentDictionary<(Type, string), MemberInfo?> Known = new();
    private static readonly ConcurrentDictionary<(Type, int), ConstructorInfo> Constructors = new();
    private static readonly ConcurrentDictionary<Type, MethodInfo?> Forwards = new();

    /// <summary>The value of a field or property of any visibility; null if there is none of this name.</summary>
    internal static object? Get(object target, string name) => Find(target.GetType(), name) switch
    {
        FieldInfo field => field.GetValue(target),
        PropertyInfo property => property.GetValue(target),
        _ => null,
    };

    /// <summary>The value of a required field or property of a given type.</summary>
    /// <exception cref="NotSupportedException">It is not there, or of another type.</exception>
    internal static T Get<T>(object target, string name) => Get(target, name) is T value
        ? value
        : throw new NotSupportedException($"{target.GetType()} has no {name} of type {typeof(T)}, which is needed to read it.");

    /// <summary>A whole number held in an int or a long.</summary>
    /// <exception cref="NotSupportedException">There is none of this name.</exception>
    internal static int GetCount(object target, string name) => Get(target, name) switch
    {
        int number => number,
        long number => checked((int)number),
        _ => throw new NotSupportedException($"{target.GetType()} has no number {name}, which is needed to read it."),
    };

    /// <summary>Sets a field or property, of whatever visibility.</summary>
    /// <returns>Whether there is one of this name that can be set.</returns>
    internal static bool TrySet(object target, string name, object? value)
    {
        switch (Find(target.GetType(), name))
        {
            case FieldInfo field:
                field.SetValue(target, value);
                return true;
            case PropertyInfo property when property.GetSetMethod(nonPublic: true) is MethodInfo setter:
                setter.Invoke(target, [value]);
                return true;
            default:
                return false;
        }
    }

    /// <summary>Makes an object by a constructor of so many parameters, of whatever visibility.</summary>
    /// <exception cref="NotSupportedException">There is none, or more than one.</exception>
    internal static object New(Type type, params object?[] arguments)
    {
        ConstructorInfo constructor = Constructors.GetOrAdd((type, arguments.Length), static key =>
            key.Item1.GetConstructors(Members).Where(one => one.GetParameters().Length == key.Item2).ToArray() is [ConstructorInfo only]
                ? only
                : throw new NotSupportedException($"{key.Item1} has no single constructor of {key.Item2} parameters, which is needed to create it."));
        return constructor.Invoke(BindingFlags.DoNotWrapExceptions, binder: null, arguments, culture: null);
    }

    /// <summary>The forward that a module's class overrides.</summary>
    /// <exception cref="NotSupportedException">There is not exactly one.</exception>
    internal static MethodInfo ForwardOf(Type type) =>
        Forward(type) ?? throw new NotSupportedException($"{type} has no single forward, which is needed to call it.");

    /// <summary>Whether a type or a base has a field or property of this name.</summary>
    internal static bool Has(Type type, string name) => Find(type, name) is not null;

    /// <summary>The declared type of a field or property of this name; null if there is none.</summary>
    internal static Type? TypeOf(Type type, string name) => Find(type, name) switch
    {
        FieldInfo field => field.FieldType,
        PropertyInfo property => property.PropertyType,
        _ => null,
    };

    /// <summary>The parameters of the forward that a module's class overrides; empty if there is not exactly one.</summary>
    internal static ParameterInfo[] ForwardParameters(nn.Module module) => Forward(module.GetType())?.GetParameters() ?? [];

    private static MethodInfo? Forward(Type type) => Forwards.GetOrAdd(type, static key =>
        key.GetMethods().Where(method => method.Name == "forward" && method.IsVirtual).ToArray() is [MethodInfo only] ? only : null);

    private static MemberInfo? Find(Type type, string name) => Known.GetOrAdd((type, name), static key =>
    {
        for (Type? level = key.Item1; level is not null; level = level.BaseType)
        {
            const BindingFlags declared = Members | BindingFlags.DeclaredOnly;
            MemberInfo? member = level.GetField(key.Item2, declared);
            member ??= level.GetProperty(key.Item2, declared);
            if (member is not null)
            {
                return member;
            }
        }

        return null;
    });
}
