namespace Mustafar.BindingGenerator.Model;

/// <summary>The bindings cannot be generated; the message says why and what to do.</summary>
public class BindingException(string message) : Exception(message);

/// <summary>The header has something that the bindings cannot express.</summary>
/// <param name="declaration">The C name of the declaration.</param>
/// <param name="reason">What it has and what to write instead.</param>
public sealed class UnsupportedDeclarationException(string declaration, string reason)
    : BindingException($"{declaration}: {reason}")
{
    /// <summary>The C name of the declaration.</summary>
    public string Declaration { get; } = declaration;
}
