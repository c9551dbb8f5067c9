using Microsoft.Extensions.AI;
using Mustafar.Models.Chat;

namespace Mustafar.Extensions.AI;

/// <summary>Messages of Microsoft.Extensions.AI as turns for a chat template, which decides on roles and their order.</summary>
internal static class ChatTurns
{
    /// <summary>Reads messages.</summary>
    /// <param name="messages">The chat.</param>
    /// <param name="instructions">System message at the start; none if null or empty.</param>
    /// <param name="format">The format of the reply, which the model is asked for.</param>
    /// <exception cref="NotSupportedException">A message has what the model can't read.</exception>
    /// <exception cref="ArgumentException">There are no messages, or one is null.</exception>
    public static List<ChatTurn> Read(IEnumerable<ChatMessage> messages, string? instructions, ChatResponseFormat? format)
    {
        List<ChatTurn> turns = string.IsNullOrEmpty(instructions) ? [] : [new ChatTurn(ChatRoles.System, instructions)];
        int count = 0;
        foreach (ChatMessage? message in messages)
        {
            ChatTurn turn = Turn(message, $"{nameof(messages)}[{count++}]", nameof(messages));

            // The leading system messages form one turn: many templates only have room for one.
            if (turn.Role == ChatRoles.System && turns is [{ Role: ChatRoles.System } system])
            {
                turns[0] = system with { Content = $"{system.Content}\n\n{turn.Content}" };
            }
            else
            {
                turns.Add(turn);
            }
        }

        if (count == 0)
        {
            throw new ArgumentException("Expected at least one message, but got none.", nameof(messages));
        }

        if (format is ChatResponseFormatJson json)
        {
            int last = Math.Max(turns.FindLastIndex(turn => turn.Role == ChatRoles.User), 0);
            turns[last] = turns[last] with { Content = $"{turns[last].Content}\n\n{Request(json)}" };
        }

        return turns;
    }

    private static ChatTurn Turn(ChatMessage? message, string name, string parameter)
    {
        if (message is null)
        {
            throw new ArgumentException($"Expected messages, but {name} is null.", parameter);
        }

        string text = "";
        string? reasoning = null;
        for (int i = 0; i < message.Contents.Count; i++)
        {
            switch (message.Contents[i])
            {
                case TextContent part:
                    text += part.Text;
                    break;
                case TextReasoningContent part:
                    reasoning += part.Text;
                    break;
                case UsageContent or ErrorContent:
                    // Usage or an error of an earlier reply, which are not part of the conversation.
                    break;
                case null:
                    throw new ArgumentException($"Expected contents, but {name}.{nameof(ChatMessage.Contents)}[{i}] is null.", parameter);
                case AIContent other:
                    throw new NotSupportedException($"{name}: content of type {other.GetType().Name} is not supported; expected text.");
            }
        }

        return new ChatTurn(RoleOf(message.Role), text, string.IsNullOrEmpty(reasoning) ? null : reasoning);
    }

    // Roles are compared without case, but a template distinguishes it.
    private static string RoleOf(ChatRole role) =>
        role == ChatRole.System ? ChatRoles.System
        : role == ChatRole.User ? ChatRoles.User
        : role == ChatRole.Assistant ? ChatRoles.Assistant
        : role.Value;

    private static string Request(ChatResponseFormatJson format) => format.Schema is null
        ? "Respond with JSON only, without any other text."
        : $"Respond with JSON only, without any other text. It must conform to this JSON schema:\n{format.Schema.Value.GetRawText()}";
}
