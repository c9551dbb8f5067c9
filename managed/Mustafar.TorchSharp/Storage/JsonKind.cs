using System.Text.Json;

namespace Mustafar.Storage;

/// <summary>Kinds of JSON values in messages.</summary>
internal static class JsonKind
{
    /// <summary>A kind as text.</summary>
    internal static string Describe(JsonValueKind kind) => kind switch
    {
        JsonValueKind.Object => "an object",
        JsonValueKind.Array => "an array",
        JsonValueKind.String => "a string",
        JsonValueKind.Number => "a number",
        JsonValueKind.True or JsonValueKind.False => "true or false",
        _ => "null",
    };
}
