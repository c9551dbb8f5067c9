using System.Text.Json;
using Mustafar.Models.Chat.Jinja;

namespace Mustafar.Models.Chat;

/// <summary>Variables for a chat template other than those of the chat itself.</summary>
internal static class TemplateVariables
{
    /// <summary>The variable with the turns.</summary>
    public const string Messages = "messages";

    /// <summary>The variable that says whether the beginning of the model's reply follows.</summary>
    public const string AddGenerationPrompt = "add_generation_prompt";

    /// <summary>Reads the variables of a JSON object.</summary>
    /// <exception cref="ArgumentException">It is not an object, has an invalid string, or sets a variable of the chat itself.</exception>
    public static Dictionary<string, object?> FromJson(JsonElement json)
    {
        if (json.ValueKind != JsonValueKind.Object)
        {
            throw new ArgumentException(
                $"Expected a JSON object with variables for the chat template, but got {json.ValueKind.ToString().ToLowerInvariant()}.", nameof(json));
        }

        try
        {
            Dictionary<string, object?> variables = [];
            foreach (JsonProperty property in json.EnumerateObject())
            {
                variables[property.Name] = ValueOf(property.Name, property.Value);
            }

            return variables;
        }
        catch (InvalidOperationException exception)
        {
            throw new ArgumentException("Expected valid strings, but one has half of a surrogate pair.", nameof(json), exception);
        }
    }

    /// <summary>A variable's value for the template.</summary>
    /// <exception cref="ArgumentException">Templates don't have its type, or the chat itself sets it.</exception>
    public static object? ValueOf(string name, object? value)
    {
        if (name is Messages or AddGenerationPrompt)
        {
            throw new ArgumentException($"Expected variables other than those of the chat itself, but got '{name}'.", nameof(name));
        }

        try
        {
            return JinjaValue.From(value);
        }
        catch (Exception exception) when (exception is ArgumentException or InvalidOperationException)
        {
            // The latter comes from JSON with half of a surrogate pair.
            string message = exception.Message.Split(" (Parameter ")[0];
            throw new ArgumentException($"The chat template's variable '{name}': {message}", nameof(value), exception);
        }
    }
}
