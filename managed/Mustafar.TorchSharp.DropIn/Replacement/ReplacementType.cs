using System.Diagnostics.CodeAnalysis;
using System.Reflection;
using System.Reflection.Emit;
using System.Runtime.CompilerServices;
using static TorchSharp.torch;

namespace Mustafar.DropIn;

/// <summary>Emits, for a module's class, the subclass whose objects replace its own.</summary>
/// <remarks>
/// Models call their modules through fields of the module's own type, which is often internal, and hooks do not run on <c>forward</c>. So a
/// replacement must be of that type and override <c>forward</c>. It is created without running a constructor and shares every field's value
/// with the object that it replaces, including the handle of the native module.
/// </remarks>
[RequiresDynamicCode("Emits a subclass of the module's class.")]
[RequiresUnreferencedCode("Reads the model's fields by reflection.")]
internal static class ReplacementType
{
    private static readonly ConditionalWeakTable<Type, Type> Emitted = new();

    /// <summary>Checks that the runtime can emit code. Called first, since such a runtime may also have trimmed what adapters look
    /// for.</summary>
    /// <exception cref="NotSupportedException">The runtime emits no code.</exception>
    internal static void ThrowIfRuntimeEmitsNoCode()
    {
        if (!RuntimeFeature.IsDynamicCodeSupported)
        {
            throw new NotSupportedException(
                "Replacing attention generates a class at run time, which this runtime does not support (NativeAOT); " +
                $"call {nameof(MustafarCache)} from the model's own attention instead.");
        }
    }

    /// <summary>Makes an object that can replace the original.</summary>
    /// <exception cref="NotSupportedException">No subclass can be made of its class.</exception>
    [SuppressMessage("Usage", "CA1816", Justification = "The native module belongs to the original, whose finaliser frees it.")]
    internal static nn.Module Replace(ModuleReplacement replacement)
    {
        nn.Module original = replacement.Original;
        Type type = original.GetType();
        nn.Module module = (nn.Module)RuntimeHelpers.GetUninitializedObject(For(type));
        GC.SuppressFinalize(module);
        FieldCopy.Copy(type, original, module);
        ((IReplacedModule)module).Replacement = replacement;
        return module;
    }

    private static Type For(Type attention)
    {
        lock (Emitted)
        {
            if (!Emitted.TryGetValue(attention, out Type? emitted))
            {
                emitted = Emit(attention, ForwardOf(attention));
                Emitted.Add(attention, emitted);
            }

            return emitted;
        }
    }

    /// <summary>Why no subclass can replace a module's class; null if one can.</summary>
    internal static string? WhyNot(Type type) =>
        type.IsSealed ? $"{type} is sealed, so no subclass can replace it."
        : ForwardsOf(type) is not [MethodInfo forward] ? $"{type} has {ForwardsOf(type).Length} overrides of forward; expected one."
        : forward.IsFinal ? $"{type}.forward is sealed, so no subclass can override it."
        : null;

    private static MethodInfo ForwardOf(Type type) =>
        WhyNot(type) is string reason ? throw new NotSupportedException(reason) : ForwardsOf(type)[0];

    private static MethodInfo[] ForwardsOf(Type type) => [.. type.GetMethods(BindingFlags.Instance | BindingFlags.Public)
        .Where(method => method.Name == "forward" && method.IsVirtual
            && method.GetBaseDefinition().DeclaringType!.Assembly == typeof(nn.Module).Assembly)];

    private static Type Emit(Type attention, MethodInfo forward)
    {
        AssemblyBuilder assembly = AssemblyBuilder.DefineDynamicAssembly(
            new AssemblyName($"Mustafar.DropIn.{attention.Name}"), AssemblyBuilderAccess.RunAndCollect);
        ConstructorInfo ignoresAccessChecks = typeof(IgnoresAccessChecksToAttribute).GetConstructor([typeof(string)])!;
        foreach (string friend in AssembliesOf(attention, forward))
        {
            assembly.SetCustomAttribute(new CustomAttributeBuilder(ignoresAccessChecks, [friend]));
        }

        TypeBuilder builder = assembly.DefineDynamicModule("Replacement").DefineType(
            string.IsNullOrEmpty(attention.Namespace) ? attention.Name : $"{attention.Namespace}.{attention.Name}",
            TypeAttributes.Public | TypeAttributes.Class | TypeAttributes.Sealed,
            attention,
            [typeof(IReplacedModule)]);
        FieldBuilder replacement = builder.DefineField("mustafarReplacement", typeof(ModuleReplacement), FieldAttributes.Private);
        EmitConstructor(builder);
        EmitReplacement(builder, replacement);
        EmitForward(builder, replacement, forward);
        EmitCallOriginal(builder, forward);
        foreach (MethodInfo conversion in typeof(nn.Module)
            .GetMethods(BindingFlags.Instance | BindingFlags.Public | BindingFlags.NonPublic)
            .Where(method => method.Name == "_to" && method.IsVirtual && !method.IsFinal))
        {
            EmitConversion(builder, conversion);
        }

        return builder.CreateType();
    }

    private static HashSet<string> AssembliesOf(Type attention, MethodInfo forward)
    {
        HashSet<string> names = [];
        Add(typeof(IReplacedModule));
        Add(forward.ReturnType);
        foreach (ParameterInfo parameter in forward.GetParameters())
        {
            Add(parameter.ParameterType);
        }

        for (Type? type = attention; type is not null && type != typeof(object); type = type.BaseType)
        {
            Add(type);
        }

        return names;

        void Add(Type type)
        {
            names.Add(type.Assembly.GetName().Name!);
            foreach (Type argument in type.GetGenericArguments())
            {
                Add(argument);
            }
        }
    }

    // Never called; without one, the builder would look for a parameterless constructor of the base.
    private static void EmitConstructor(TypeBuilder builder)
    {
        ILGenerator il = builder.DefineConstructor(MethodAttributes.Private, CallingConventions.Standard, Type.EmptyTypes).GetILGenerator();
        il.Emit(OpCodes.Ldnull);
        il.Emit(OpCodes.Throw);
    }

    private static void EmitReplacement(TypeBuilder builder, FieldBuilder replacement)
    {
        PropertyInfo property = typeof(IReplacedModule).GetProperty(nameof(IReplacedModule.Replacement))!;
        ILGenerator getter = Implement(builder, property.GetMethod!).GetILGenerator();
        getter.Emit(OpCodes.Ldarg_0);
        getter.Emit(OpCodes.Ldfld, replacement);
        getter.Emit(OpCodes.Ret);
        ILGenerator setter = Implement(builder, property.SetMethod!).GetILGenerator();
        setter.Emit(OpCodes.Ldarg_0);
        setter.Emit(OpCodes.Ldarg_1);
        setter.Emit(OpCodes.Stfld, replacement);
        setter.Emit(OpCodes.Ret);
    }

    // R forward(A a, B b) => (R)mustafarReplacement.Forward(this, new object[] { a, b });
    private static void EmitForward(TypeBuilder builder, FieldBuilder replacement, MethodInfo forward)
    {
        Type[] parameters = ParametersOf(forward);
        ILGenerator il = Override(builder, forward, parameters).GetILGenerator();
        il.Emit(OpCodes.Ldarg_0);
        il.Emit(OpCodes.Ldfld, replacement);
        il.Emit(OpCodes.Ldarg_0);
        il.Emit(OpCodes.Ldc_I4, parameters.Length);
        il.Emit(OpCodes.Newarr, typeof(object));
        for (int i = 0; i < parameters.Length; i++)
        {
            il.Emit(OpCodes.Dup);
            il.Emit(OpCodes.Ldc_I4, i);
            il.Emit(OpCodes.Ldarg, (short)(i + 1));
            if (parameters[i].IsValueType)
            {
                il.Emit(OpCodes.Box, parameters[i]);
            }

            il.Emit(OpCodes.Stelem_Ref);
        }

        il.Emit(OpCodes.Callvirt, typeof(ModuleReplacement).GetMethod(
            nameof(ModuleReplacement.Forward), BindingFlags.Instance | BindingFlags.Public | BindingFlags.NonPublic)!);
        il.Emit(OpCodes.Unbox_Any, forward.ReturnType);
        il.Emit(OpCodes.Ret);
    }

    // object CallOriginal(object[] arguments) => base.forward((A)arguments[0], (B)arguments[1]);
    private static void EmitCallOriginal(TypeBuilder builder, MethodInfo forward)
    {
        Type[] parameters = ParametersOf(forward);
        MethodInfo implemented = typeof(IReplacedModule).GetMethod(nameof(IReplacedModule.CallOriginal))!;
        ILGenerator il = Implement(builder, implemented).GetILGenerator();
        il.Emit(OpCodes.Ldarg_0);
        for (int i = 0; i < parameters.Length; i++)
        {
            il.Emit(OpCodes.Ldarg_1);
            il.Emit(OpCodes.Ldc_I4, i);
            il.Emit(OpCodes.Ldelem_Ref);
            il.Emit(OpCodes.Unbox_Any, parameters[i]);
        }

        il.Emit(OpCodes.Call, forward);
        if (forward.ReturnType.IsValueType)
        {
            il.Emit(OpCodes.Box, forward.ReturnType);
        }

        il.Emit(OpCodes.Ret);
    }

    // Module _to(..) { ModuleReplacement.BeforeConversion(this)._to(..); ModuleReplacement.AfterConversion(this); return this; }
    // TorchSharp converts the fields that GetType() shows, which are not the private ones of a base class.
    private static void EmitConversion(TypeBuilder builder, MethodInfo conversion)
    {
        Type[] parameters = ParametersOf(conversion);
        ILGenerator il = Override(builder, conversion, parameters).GetILGenerator();
        il.Emit(OpCodes.Ldarg_0);
        il.Emit(OpCodes.Call, Conversion(nameof(ModuleReplacement.BeforeConversion)));
        for (int i = 0; i < parameters.Length; i++)
        {
            il.Emit(OpCodes.Ldarg, (short)(i + 1));
        }

        il.Emit(OpCodes.Callvirt, conversion);
        il.Emit(OpCodes.Pop);
        il.Emit(OpCodes.Ldarg_0);
        il.Emit(OpCodes.Call, Conversion(nameof(ModuleReplacement.AfterConversion)));
        il.Emit(OpCodes.Ldarg_0);
        il.Emit(OpCodes.Ret);
    }

    private static MethodInfo Conversion(string name) =>
        typeof(ModuleReplacement).GetMethod(name, BindingFlags.Static | BindingFlags.NonPublic)!;

    private static MethodBuilder Override(TypeBuilder builder, MethodInfo method, Type[] parameters)
    {
        // From another assembly, protected internal is overridden as protected.
        MethodAttributes access = method.IsPublic ? MethodAttributes.Public : MethodAttributes.Family;
        return builder.DefineMethod(
            method.Name, access | MethodAttributes.Virtual | MethodAttributes.HideBySig, method.ReturnType, parameters);
    }

    private static MethodBuilder Implement(TypeBuilder builder, MethodInfo method)
    {
        const MethodAttributes attributes = MethodAttributes.Private | MethodAttributes.Virtual | MethodAttributes.Final
            | MethodAttributes.HideBySig | MethodAttributes.NewSlot;
        MethodBuilder implementation = builder.DefineMethod(
            $"{nameof(IReplacedModule)}.{method.Name}", attributes, method.ReturnType, ParametersOf(method));
        builder.DefineMethodOverride(implementation, method);
        return implementation;
    }

    private static Type[] ParametersOf(MethodInfo method) => method.GetParameters().Select(parameter => parameter.ParameterType).ToArray();
}
