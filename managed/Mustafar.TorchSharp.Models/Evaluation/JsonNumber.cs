using System.Globalization;
using System.Text.Json.Nodes;

namespace Mustafar.Models.Evaluation;

/// <summary>Numbers in JSON, which has only finite ones: others are null.</summary>
internal static class JsonNumber
{
    public static JsonNode? Of(double value) => double.IsFinite(value) ? JsonValue.Create(value) : null;

    // With the fewest digits that tell floats apart.
    public static JsonNode? Of(float value) =>
        Of(double.Parse(value.ToString("R", CultureInfo.InvariantCulture), CultureInfo.InvariantCulture));

    public static double Read(JsonNode? node) => node is null ? double.NaN : (double)node;
}
