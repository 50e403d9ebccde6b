//! Blobs on their way out: by whatever protocol, verified or remembered, they are what was asked for.

use super::*;

/// For which everything that was written just now is settled.
fn later() -> SystemTime {
    SystemTime::now() + Duration::from_secs(10)
}

async fn running() -> (Running, String) {
    let spool = tempfile::tempdir().unwrap();
    let kind = StorageKind::Directory(spool.path().join("storage"));
    let server = Running::with(kind, spool, Settings::new(later)).await;
    let token = server.token("default", ALL, ALL).await;
    (server, token)
}

fn content(length: u32) -> Vec<u8> {
    (0..length).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// Writes a blob, and finds its file.
async fn store(server: &Running, token: &str, content: &[u8]) -> (Digest, std::path::PathBuf) {
    let digest = Digest::of(content);
    let blob = BlobSource::Bytes(content.to_vec().into());
    server.store(token).write_blob(&digest, blob).await.unwrap();
    let tenants = server.spool.path().join("storage/tenants");
    (digest, crate::store::tests::contract::hex_file(&tenants, &digest.hex()))
}

#[tokio::test]
async fn every_way_gives_the_same_bytes() {
    let (server, token) = running().await;
    let content = content(1_300_000);
    let (digest, _) = store(&server, &token, &content).await;
    let push = format!("/v2/a/blobs/uploads/?digest={digest}");
    assert_eq!(server.status(Method::POST, &push, &token, content.clone()).await, StatusCode::CREATED);
    let newer = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let clients = [(reqwest::Client::new(), reqwest::Version::HTTP_11), (newer, reqwest::Version::HTTP_2)];
    let length = content.len();
    for path in [format!("/api/v1/blobs/{digest}"), format!("/v2/a/blobs/{digest}")] {
        for (client, version) in &clients {
            // Once it is read and verified, then it is remembered; one connection takes them all.
            for range in [None, None, Some(0..1), None, Some(1_048_575..3_000_001), Some(length - 1..length)]
            {
                let request = client.get(format!("http://{}{path}", server.address)).bearer_auth(&token);
                let request = match &range {
                    None => request,
                    Some(range) => {
                        request.header("range", format!("bytes={}-{}", range.start, range.end - 1))
                    }
                };
                let answer = request.send().await.unwrap().error_for_status().unwrap();
                assert_eq!(answer.version(), *version);
                let expected = &content[range.clone().unwrap_or(0..length)];
                assert!(answer.bytes().await.unwrap() == expected, "{path} {version:?} {range:?}");
            }
        }
    }
}

/// What was verified and has changed since is verified again.
#[tokio::test]
async fn damage_is_found_also_in_what_was_verified() {
    let (server, token) = running().await;
    for cut_off in [false, true] {
        let content = content(700_000 + u32::from(cut_off));
        let (digest, file) = store(&server, &token, &content).await;
        let path = format!("/api/v1/blobs/{digest}");
        // It may break off before its head is sent.
        let read = async || server.request(Method::GET, &path, &token).send().await?.bytes().await;
        for _ in 0..3 {
            assert!(read().await.unwrap() == content);
        }
        let mut damaged = content.clone();
        damaged[5] ^= 1;
        if cut_off {
            damaged.truncate(100);
        }
        fs_err::write(file, damaged).unwrap();
        let answer = read().await;
        assert!(answer.is_err(), "{:?}", answer.map(|bytes| bytes.len()));
        assert_eq!(server.store(&token).missing_blobs(&[digest]).await.unwrap(), [digest]);
    }
}

/// Who goes away in the middle of an answer, and who asks for several at once on one connection.
#[tokio::test]
async fn answers_follow_one_another() {
    let (server, token) = running().await;
    let (one, two) = (content(600_000), content(20_000));
    let mut requests = String::new();
    for content in [&one, &two, &two, &one] {
        let (digest, _) = store(&server, &token, content).await;
        let path = format!("/api/v1/blobs/{digest}");
        // Verified, and remembered.
        let read = server.request(Method::GET, &path, &token).send().await.unwrap();
        assert!(read.bytes().await.unwrap() == *content);
        requests += &format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
    }
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    stream.write_all(requests.as_bytes()).await.unwrap();
    let mut gone = tokio::net::TcpStream::connect(server.address).await.unwrap();
    gone.write_all(requests.as_bytes()).await.unwrap();
    let mut begun = vec![0; 10_000];
    gone.read_exact(&mut begun).await.unwrap();
    drop(gone);
    for content in [&one, &two, &two, &one] {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
        let mut body = vec![0; content.len()];
        stream.read_exact(&mut body).await.unwrap();
        assert!(body == *content);
    }
}
