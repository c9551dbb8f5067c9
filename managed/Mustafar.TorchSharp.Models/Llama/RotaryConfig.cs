using System.Text.Json;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Llama;

/// <summary>Reads the rotary positions in config.json.</summary>
internal static class RotaryConfig
{
    private const string Llama3 = "llama3";

    private static readonly string[] s_commonKeys = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];

    private static readonly string[] s_llama3Keys = ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"];

    /// <summary>
    /// Reads both forms: transformers 5 has everything in <c>rope_parameters</c>; transformers 4 has <c>rope_theta</c>, and
    /// <c>rope_scaling</c> for anything but plain positions.
    /// </summary>
    public static RotaryOptions Read(JsonElement root, int headDim, string path)
    {
        JsonElement? parameters = Parameters(root, path);
        string type = parameters?.FindString("rope_type", path) ?? parameters?.FindString("type", path) ?? "default";
        if (type is not ("default" or Llama3))
        {
            throw new UnsupportedModelException($"RoPE type '{type}' is not supported; expected 'default' or '{Llama3}'.", path);
        }

        foreach (JsonProperty parameter in parameters?.EnumerateObject() ?? default)
        {
            if (parameter.Value.ValueKind == JsonValueKind.Object)
            {
                // As in Gemma 3.
                throw new UnsupportedModelException(
                    $"'rope_parameters' with a separate set for '{parameter.Name}' is not supported; expected one set for all layers.", path);
            }

            bool isKnown = s_commonKeys.Contains(parameter.Name) || (type == Llama3 && s_llama3Keys.Contains(parameter.Name));
            if (!isKnown && parameter.Value.ValueKind != JsonValueKind.Null)
            {
                throw new UnsupportedModelException(
                    $"'{parameter.Name}' = {parameter.Value.Quote()} with RoPE type '{type}' is not supported.", path);
            }
        }

        if (parameters?.Find("partial_rotary_factor") is JsonElement partial && !partial.IsNumber(1))
        {
            throw new UnsupportedModelException($"'partial_rotary_factor' = {partial.Quote()} is not supported.", path);
        }

        double theta = parameters?.FindDouble("rope_theta", path) ?? root.FindDouble("rope_theta", path) ?? 10_000;
        return new RotaryOptions
        {
            HeadDim = headDim,
            Theta = Positive(theta, "rope_theta", path),
            Scaling = type == Llama3 ? Scaling(root, parameters!.Value, path) : null,
        };
    }

    private static JsonElement? Parameters(JsonElement root, string path)
    {
        JsonElement? scaling = root.Find("rope_scaling");
        JsonElement? parameters = root.Find("rope_parameters");
        string key = parameters is null ? "rope_scaling" : "rope_parameters";
        parameters ??= scaling;
        if (parameters is not JsonElement value)
        {
            return null;
        }

        if (value.ValueKind != JsonValueKind.Object)
        {
            throw new CheckpointException($"expected an object as '{key}', the parameters of RoPE, but got {value.Quote()}.", path);
        }

        return scaling is JsonElement other && !JsonElement.DeepEquals(value, other)
            ? throw new CheckpointException("expected either 'rope_parameters' or 'rope_scaling', but got both, and they differ.", path)
            : value;
    }

    private static Llama3RotaryScaling Scaling(JsonElement root, JsonElement parameters, string path)
    {
        int original = parameters.FindInt32("original_max_position_embeddings", path)
            ?? root.RequireInt32("original_max_position_embeddings", path);
        double low = Required("low_freq_factor");
        double high = Required("high_freq_factor");
        if (high <= low)
        {
            throw new CheckpointException($"expected 'high_freq_factor' above 'low_freq_factor', but they are {high} and {low}.", path);
        }

        return new Llama3RotaryScaling
        {
            Factor = Required("factor"),
            LowFrequencyFactor = low,
            HighFrequencyFactor = high,
            OriginalMaxPositions = (int)Positive(original, "original_max_position_embeddings", path),
        };

        double Required(string key) => parameters.FindDouble(key, path) is double value
            ? Positive(value, key, path)
            : throw new CheckpointException($"expected a number '{key}' with RoPE type '{Llama3}', but the key is absent.", path);
    }

    private static double Positive(double value, string key, string path) => double.IsFinite(value) && value > 0
        ? value
        : throw new CheckpointException($"expected a positive '{key}', but it is {value}.", path);
}
