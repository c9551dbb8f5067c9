namespace Mustafar.BindingGenerator.Model;

/// <summary>A C type as far as the bindings need it.</summary>
/// <param name="IsConst">Whether the type itself is const; a pointer to const has a const target.</param>
public abstract record HeaderType(bool IsConst)
{
    /// <summary>The type in C, the same whatever the header's spacing: <c>const int32_t*</c>, <c>void* const*</c>.</summary>
    public abstract string Spelling { get; }
}

/// <summary>void, a floating point type or an integer of known width.</summary>
public sealed record ScalarType(Scalar Scalar, bool IsConst = false) : HeaderType(IsConst)
{
    /// <inheritdoc/>
    public override string Spelling => (IsConst ? "const " : "") + Scalar.Spelling;
}

/// <summary>A struct of the header.</summary>
public sealed record StructType(string Name, bool IsConst = false) : HeaderType(IsConst)
{
    /// <inheritdoc/>
    public override string Spelling => (IsConst ? "const " : "") + Name;
}

/// <summary>An enum of the header.</summary>
public sealed record EnumType(string Name, bool IsConst = false) : HeaderType(IsConst)
{
    /// <inheritdoc/>
    public override string Spelling => (IsConst ? "const " : "") + Name;
}

/// <summary>A pointer to an object; <c>restrict</c> is dropped, since it says nothing about how to call.</summary>
public sealed record PointerType(HeaderType Target, bool IsConst = false) : HeaderType(IsConst)
{
    /// <inheritdoc/>
    public override string Spelling => Target.Spelling + (IsConst ? "* const" : "*");
}
